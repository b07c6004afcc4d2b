//! Jobspecs in HCL to the API's JSON, with Nomad's messages: file, line and column first.

mod schema;
mod values;

use std::ops::Range;

use hcl::edit::Span;
use hcl::edit::structure::{Block, Body, Structure};
use serde_json::{Map, Value, json};

use super::skeleton;
use schema::{Attr, Shape};
use values::Values;

/// The parser below recurses: a jobspec is never this deep.
const MAX_DEPTH: usize = 200;

/// An error at a place in the source.
#[derive(Debug)]
pub(crate) struct Problem {
    at: Option<Range<usize>>,
    text: String,
}

impl Problem {
    fn new(at: Option<Range<usize>>, text: impl Into<String>) -> Self {
        Self { at, text: text.into() }
    }

    fn print(&self, source: &str) -> String {
        match &self.at {
            Some(at) => format!("{}: {}", place(source, at), self.text),
            None => self.text.clone(),
        }
    }
}

/// `input.hcl:2,3-6`, or `input.hcl:2,18-3,1` over several lines.
fn place(source: &str, at: &Range<usize>) -> String {
    let position = |offset: usize| {
        let before = &source[..floor(source, offset)];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        (line, column)
    };
    let ((l1, c1), (l2, c2)) = (position(at.start), position(at.end));
    if l1 == l2 { format!("input.hcl:{l1},{c1}-{c2}") } else { format!("input.hcl:{l1},{c1}-{l2},{c2}") }
}

fn floor(source: &str, offset: usize) -> usize {
    (0..=offset.min(source.len())).rev().find(|i| source.is_char_boundary(*i)).unwrap_or(0)
}

/// The job of a jobspec in the API's form, nothing filled in. The error is what follows `Failed to parse job: `.
pub(crate) fn parse(source: &str, variables: &str) -> Result<Value, String> {
    shallow(source)?;
    let body = hcl::edit::parser::parse_body(source).map_err(|e| syntax(source, &e))?;
    read(&body, variables).map_err(|p| p.print(source))
}

/// Refuses what would take the parser's recursion too deep.
pub(crate) fn shallow(source: &str) -> Result<(), String> {
    let mut depth = 0_usize;
    for c in source.chars() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(format!("input.hcl: Too deeply nested; More than {MAX_DEPTH} brackets are open at once."));
        }
    }
    Ok(())
}

/// What is wrong with text that is no HCL, in HCL's own words where the cause is clear.
fn syntax(source: &str, error: &hcl::edit::parser::Error) -> String {
    if let Some(open) = unclosed(source) {
        return format!(
            "{}: Unclosed configuration block; There is no closing brace for this block before the end of the file. This may be \
             caused by incorrect brace nesting elsewhere in this file.",
            place(source, &(open..open + 1))
        );
    }
    let offset = floor(source, error.location().offset());
    let end = (offset + 1).min(source.len());
    let at = place(source, &(offset..end));
    let line = source[..offset].rfind('\n').map_or(0, |i| i + 1);
    let before = source[line..offset].trim_start();
    if before.contains('"') && before.matches('"').count() % 2 == 1 {
        return format!(
            "{at}: Invalid multi-line string; Quoted strings may not be split over multiple lines. To produce a multi-line string, \
             either use the \\n escape to represent a newline character or use the \"heredoc\" multi-line template syntax."
        );
    }
    if before.is_empty() && !source[offset..].starts_with(|c: char| c.is_alphabetic()) && !in_list(&source[..offset]) {
        return format!("{at}: Argument or block definition required; An argument or block definition is required here.");
    }
    if before.contains('=') || in_list(&source[..offset]) {
        return format!("{at}: Invalid expression; Expected the start of an expression, but found an invalid expression token.");
    }
    format!(
        "{at}: Invalid block definition; A block definition must have block content delimited by \"{{\" and \"}}\", starting on the \
         same line as the block header."
    )
}

fn in_list(before: &str) -> bool {
    before.matches('[').count() > before.matches(']').count()
}

/// The brace that opens the innermost block the file never closes.
fn unclosed(source: &str) -> Option<usize> {
    let mut open = Vec::new();
    let mut quoted = false;
    let mut chars = source.char_indices().peekable();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' if quoted => {
                chars.next();
            }
            '\n' => quoted = false,
            '"' => quoted = !quoted,
            '#' if !quoted => while chars.next_if(|(_, c)| *c != '\n').is_some() {},
            '/' if !quoted && chars.peek().is_some_and(|(_, c)| *c == '/') => {
                while chars.next_if(|(_, c)| *c != '\n').is_some() {}
            }
            '{' if !quoted => open.push(i),
            '}' if !quoted => {
                open.pop();
            }
            _ => {}
        }
    }
    open.first().copied().filter(|_| !open.is_empty())
}

fn read(body: &Body, variables: &str) -> Result<Value, Problem> {
    let mut values = Values::new();
    values.overrides(variables)?;
    for b in body.blocks().filter(|b| b.has_ident("variable")) {
        values.variable(b)?;
    }
    for b in body.blocks().filter(|b| b.has_ident("locals")) {
        values.locals(b)?;
    }
    let mut job: Option<&Block> = None;
    for s in body {
        match s {
            Structure::Attribute(a) => return Err(unsupported_argument(a.key.span(), a.key.as_str())),
            Structure::Block(b) => match b.ident.as_str() {
                "variable" | "locals" => {}
                "job" if job.is_none() => job = Some(b),
                "job" => return Err(Problem::new(header(b), "Duplicate job block; Only one block of type \"job\" is allowed.")),
                other => return Err(unsupported_block(b.ident.span(), other)),
            },
        }
    }
    let Some(block) = job else { return Err(Problem::new(None, "Missing job block; A job block is required")) };
    let id = one_label(block, "job", &values)?;
    let mut job = skeleton::job();
    job.insert("ID".into(), json!(id));
    job.insert("Name".into(), json!(id));
    fill(&mut job, &block.body, schema::JOB, &values)?;
    Ok(Value::Object(job))
}

/// From a block's type to its last label.
fn header(b: &Block) -> Option<Range<usize>> {
    let start = b.ident.span()?.start;
    let end = b.labels.last().and_then(Span::span).or_else(|| b.ident.span())?.end;
    Some(start..end)
}

fn unsupported_argument(at: Option<Range<usize>>, name: &str) -> Problem {
    Problem::new(at, format!("Unsupported argument; An argument named {name:?} is not expected here."))
}

fn unsupported_block(at: Option<Range<usize>>, name: &str) -> Problem {
    Problem::new(at, format!("Unsupported block type; Blocks of type {name:?} are not expected here."))
}

fn one_label(b: &Block, kind: &str, values: &Values) -> Result<String, Problem> {
    match b.labels.as_slice() {
        [one] => Ok(values.label(one.as_str())),
        [] => Err(Problem::new(b.ident.span(), format!("Missing name for {kind}; All {kind} blocks must have 1 labels (name)."))),
        [_, extra, ..] => Err(Problem::new(
            extra.span(),
            format!("Extraneous label for {kind}; Only 1 labels (name) are expected for {kind} blocks."),
        )),
    }
}

/// Reads a body by its schema into an object.
fn fill(out: &mut Map<String, Value>, body: &Body, schema: &schema::Schema, values: &Values) -> Result<(), Problem> {
    for s in body {
        match s {
            Structure::Attribute(a) => {
                let name = a.key.as_str();
                let Some((key, kind)) = schema.attr(name) else { return Err(unsupported_argument(a.key.span(), name)) };
                let value = values.typed(&a.value, kind)?;
                if let Some((outer, inner)) = key.split_once('.') {
                    let slot = out.entry(outer).or_insert(Value::Null);
                    if !slot.is_object() {
                        *slot = json!({});
                    }
                    if let Some(m) = slot.as_object_mut() {
                        m.insert(inner.into(), value);
                    }
                } else {
                    out.insert(key.into(), value);
                }
            }
            Structure::Block(b) => {
                let name = b.ident.as_str();
                let Some((key, shape)) = schema.block(name) else { return Err(unsupported_block(b.ident.span(), name)) };
                block(out, b, key, shape, values)?;
            }
        }
    }
    Ok(())
}

fn push(out: &mut Map<String, Value>, key: &str, value: Value) {
    let slot = out.entry(key).or_insert(Value::Null);
    if !slot.is_array() {
        *slot = json!([]);
    }
    if let Value::Array(list) = slot {
        list.push(value);
    }
}

fn block(out: &mut Map<String, Value>, b: &Block, key: &str, shape: Shape, values: &Values) -> Result<(), Problem> {
    match shape {
        Shape::Groups => {
            let mut g = skeleton::group();
            g.insert("Name".into(), json!(one_label(b, "group", values)?));
            fill(&mut g, &b.body, schema::GROUP, values)?;
            push(out, key, Value::Object(g));
        }
        Shape::Tasks => push(out, key, task(b, values)?),
        // A task right below a job gets a group of its own name.
        Shape::LoneTask => {
            let task = task(b, values)?;
            let mut g = skeleton::group();
            g.insert("Name".into(), task["Name"].clone());
            g.insert("Tasks".into(), json!([task]));
            push(out, key, Value::Object(g));
        }
        Shape::One(schema, base) => {
            let mut o = base();
            // Two blocks of a kind: the later one's settings win.
            if let Some(Value::Object(old)) = out.get(key) {
                o = old.clone();
            }
            fill(&mut o, &b.body, schema, values)?;
            out.insert(key.into(), Value::Object(o));
        }
        Shape::Many(schema, base) => {
            let mut o = base();
            if let Some(label) = b.labels.first() {
                o.insert("Name".into(), json!(values.label(label.as_str())));
            }
            fill(&mut o, &b.body, schema, values)?;
            push(out, key, Value::Object(o));
        }
        Shape::Constraints => push(out, key, constraint(b, values)?),
        Shape::Strings => {
            let map = values.strings(&b.body)?;
            out.insert(key.into(), Value::Object(map));
        }
        Shape::Free => {
            let value = values.free(&b.body)?;
            out.insert(key.into(), value);
        }
        Shape::Guess => {
            let value = values.guess(b)?;
            out.insert(key.into(), value);
        }
        Shape::GuessMany => {
            let value = values.guess(b)?;
            push(out, key, value);
        }
        Shape::GuessNamed => {
            let value = values.guess(b)?;
            let label = b.labels.first().map(|l| values.label(l.as_str())).unwrap_or_default();
            let slot = out.entry(key).or_insert(Value::Null);
            if !slot.is_object() {
                *slot = json!({});
            }
            if let Some(m) = slot.as_object_mut() {
                m.insert(label, value);
            }
        }
        Shape::Network => {
            let value = values.network(b)?;
            push(out, key, value);
        }
    }
    Ok(())
}

fn task(b: &Block, values: &Values) -> Result<Value, Problem> {
    let mut t = skeleton::task();
    t.insert("Name".into(), json!(one_label(b, "task", values)?));
    fill(&mut t, &b.body, schema::TASK, values)?;
    Ok(Value::Object(t))
}

/// A constraint's operand may be an argument's name: `regexp = "…"`.
fn constraint(b: &Block, values: &Values) -> Result<Value, Problem> {
    let mut c = json!({"LTarget": "", "RTarget": "", "Operand": "="});
    for s in &b.body {
        let Structure::Attribute(a) = s else { return Err(unsupported_block(s.span(), "block")) };
        let name = a.key.as_str();
        match name {
            "attribute" => c["LTarget"] = values.typed(&a.value, Attr::Str)?,
            "value" => c["RTarget"] = values.typed(&a.value, Attr::Str)?,
            "operator" => c["Operand"] = values.typed(&a.value, Attr::Str)?,
            "version" | "semver" | "regexp" | "set_contains" | "set_contains_any" | "set_contains_all" | "distinct_property" => {
                let v = values.typed(&a.value, Attr::Str)?;
                if name == "distinct_property" {
                    c["LTarget"] = v;
                } else {
                    c["RTarget"] = v;
                }
                c["Operand"] = json!(name);
            }
            "distinct_hosts" | "is_set" | "is_not_set" => {
                c["Operand"] = json!(name);
                if name == "distinct_hosts" {
                    c["RTarget"] = json!("true");
                }
            }
            other => return Err(unsupported_argument(a.key.span(), other)),
        }
    }
    Ok(c)
}

#[cfg(test)]
mod tests;
