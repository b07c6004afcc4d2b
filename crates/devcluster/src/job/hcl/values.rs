//! Expressions to JSON values. What a jobspec cannot know itself (`${attr.…}`, `${NOMAD_…}`) stays as it was written.

use hcl::edit::Span;
use hcl::edit::expr::Expression as Source;
use hcl::edit::structure::{Block, Body, Structure};
use hcl::eval::{Context, Evaluate, FuncArgs, FuncDef, ParamType};
use hcl::expr::{Expression, ObjectKey, TraversalOperator};
use hcl::template::{Element, Template};
use serde_json::{Map, Value, json};

use super::schema::Attr;
use super::{Problem, unsupported_argument, unsupported_block};
use crate::duration;

pub(super) struct Values {
    context: Context<'static>,
    vars: hcl::Map<String, hcl::Value>,
    locals: hcl::Map<String, hcl::Value>,
}

impl Values {
    pub(super) fn new() -> Self {
        let mut context = Context::new();
        for (name, f) in [("upper", upper as fn(FuncArgs) -> Result<hcl::Value, String>), ("lower", lower), ("trimspace", trim)] {
            context.declare_func(name, FuncDef::builder().param(ParamType::String).build(f));
        }
        context.declare_func(
            "join",
            FuncDef::builder().param(ParamType::String).param(ParamType::array_of(ParamType::String)).build(join),
        );
        context.declare_func(
            "format",
            FuncDef::builder().param(ParamType::String).variadic_param(ParamType::Any).build(format_values),
        );
        context.declare_func("jsonencode", FuncDef::builder().param(ParamType::Any).build(json_encode));
        Self { context, vars: hcl::Map::new(), locals: hcl::Map::new() }
    }

    /// Values given from outside, as a file of arguments.
    pub(super) fn overrides(&mut self, text: &str) -> Result<(), Problem> {
        if text.is_empty() {
            return Ok(());
        }
        let body =
            hcl::edit::parser::parse_body(text).map_err(|e| Problem::new(None, format!("Failed to parse HCL variables: {e}")))?;
        for a in body.attributes() {
            let value = self.evaluate(&a.value)?;
            self.vars.insert(a.key.as_str().to_owned(), value);
        }
        Ok(())
    }

    pub(super) fn variable(&mut self, b: &Block) -> Result<(), Problem> {
        let name = super::one_label(b, "variable", self)?;
        if !self.vars.contains_key(&name) {
            match b.body.get_attribute("default") {
                Some(a) => {
                    let value = self.evaluate(&a.value)?;
                    self.vars.insert(name, value);
                }
                None => {
                    return Err(Problem::new(
                        b.ident.span(),
                        format!(
                            "Unset variable {name:?}; A used variable must be set or have a default value; see https://developer.hashicorp.com/nomad/docs/job-specification/hcl2/syntax for details."
                        ),
                    ));
                }
            }
        }
        self.context.declare_var("var", hcl::Value::Object(self.vars.clone()));
        Ok(())
    }

    pub(super) fn locals(&mut self, b: &Block) -> Result<(), Problem> {
        for a in b.body.attributes() {
            let value = self.evaluate(&a.value)?;
            self.locals.insert(a.key.as_str().to_owned(), value);
            self.context.declare_var("local", hcl::Value::Object(self.locals.clone()));
        }
        Ok(())
    }

    fn evaluate(&self, source: &Source) -> Result<hcl::Value, Problem> {
        let expr = Expression::from(source.clone());
        expr.evaluate(&self.context).map_err(|e| Problem::new(source.span(), e.to_string()))
    }

    /// A block's label; templates in labels are not allowed, what looks like one stays.
    pub(super) fn label(&self, text: &str) -> String {
        text.to_owned()
    }

    pub(super) fn json(&self, source: &Source) -> Result<Value, Problem> {
        let expr = Expression::from(source.clone());
        self.expression(&expr).map_err(|text| Problem::new(source.span(), text))
    }

    fn expression(&self, expr: &Expression) -> Result<Value, String> {
        match expr {
            Expression::Null => Ok(Value::Null),
            Expression::Bool(b) => Ok(json!(b)),
            Expression::String(s) => Ok(json!(s)),
            Expression::Number(n) => serde_json::to_value(n).map_err(|e| e.to_string()),
            Expression::Array(a) => a.iter().map(|e| self.expression(e)).collect::<Result<Vec<_>, _>>().map(Value::Array),
            Expression::Object(o) => {
                let mut m = Map::new();
                for (k, v) in o {
                    let key = match k {
                        ObjectKey::Identifier(i) => i.to_string(),
                        ObjectKey::Expression(e) => self.expression(e)?.as_str().unwrap_or_default().to_owned(),
                        _ => continue,
                    };
                    m.insert(key, self.expression(v)?);
                }
                Ok(Value::Object(m))
            }
            Expression::Parenthesis(e) => self.expression(e),
            Expression::TemplateExpr(t) => {
                let template = Template::from_expr(t).map_err(|e| e.to_string())?;
                self.template(&template)
            }
            other => {
                let value = other.evaluate(&self.context).map_err(|e| self.explain(other, &e.to_string()))?;
                serde_json::to_value(value).map_err(|e| e.to_string())
            }
        }
    }

    /// The words HCL has for the usual mistakes.
    fn explain(&self, expr: &Expression, error: &str) -> String {
        match expr {
            Expression::FuncCall(f) => {
                let name = f.name.to_string();
                format!("Call to unknown function; There is no function named {name:?}.")
            }
            Expression::Traversal(t) => match t.operators.first() {
                Some(TraversalOperator::GetAttr(i)) => {
                    format!("Unsupported attribute; This object does not have an attribute named {:?}.", i.to_string())
                }
                _ => error.to_owned(),
            },
            _ => error.to_owned(),
        }
    }

    fn template(&self, template: &Template) -> Result<Value, String> {
        // A lone interpolation keeps its type.
        if let [Element::Interpolation(i)] = template.elements()
            && let Some(v) = self.known(&i.expr)?
        {
            return Ok(v);
        }
        let mut out = String::new();
        for e in template.elements() {
            match e {
                Element::Literal(l) => out.push_str(&l.replace("$${", "${").replace("%%{", "%{")),
                Element::Interpolation(i) => match self.known(&i.expr)? {
                    Some(Value::String(s)) => out.push_str(&s),
                    Some(v) => out.push_str(&v.to_string()),
                    None => {
                        let text = hcl::format::to_string(&i.expr).map_err(|e| e.to_string())?;
                        out.push_str("${");
                        out.push_str(text.trim());
                        out.push('}');
                    }
                },
                Element::Directive(d) => {
                    let one = Template::new().add_directive(d.as_ref().clone());
                    out.push_str(&one.evaluate(&self.context).map_err(|e| e.to_string())?);
                }
            }
        }
        Ok(json!(out))
    }

    /// The value of what the jobspec knows; none for what only a node or task knows.
    fn known(&self, expr: &Expression) -> Result<Option<Value>, String> {
        let root = match expr {
            Expression::Variable(v) => Some(v.to_string()),
            Expression::Traversal(t) => match &t.expr {
                Expression::Variable(v) => Some(v.to_string()),
                _ => None,
            },
            _ => None,
        };
        if root.is_some_and(|r| !matches!(r.as_str(), "var" | "local")) {
            return Ok(None);
        }
        self.expression(expr).map(Some)
    }

    pub(super) fn typed(&self, source: &Source, kind: Attr) -> Result<Value, Problem> {
        let value = self.json(source)?;
        if value.is_null() {
            return Ok(value);
        }
        // HCL underlines what is inside the quotes.
        let span = source.span().map(|s| if value.is_string() && s.len() >= 2 { s.start + 1..s.end - 1 } else { s });
        let wrong =
            |want: &str| Problem::new(span.clone(), format!("Unsuitable value type; Unsuitable value: {want} is required"));
        Ok(match kind {
            Attr::Str => json!(text(&value).ok_or_else(|| wrong("string"))?),
            Attr::Int => match &value {
                Value::Number(_) => value,
                Value::String(s) => json!(s.parse::<i64>().map_err(|_| wrong("a number"))?),
                _ => return Err(wrong("a number")),
            },
            Attr::Bool => match &value {
                Value::Bool(_) => value,
                Value::String(s) if s == "true" || s == "false" => json!(s == "true"),
                _ => return Err(wrong("a bool")),
            },
            Attr::Duration => match &value {
                Value::Number(_) => value,
                Value::String(s) => match duration::parse(s) {
                    Some(ns) => json!(ns),
                    None => {
                        return Err(Problem::new(
                            span,
                            format!("Unsuitable value type; Unsuitable duration value: {}", go_duration_error(s)),
                        ));
                    }
                },
                _ => return Err(wrong("string")),
            },
            Attr::Strings => match &value {
                Value::Array(a) => {
                    json!(a.iter().map(|v| text(v).ok_or_else(|| wrong("list of string"))).collect::<Result<Vec<_>, _>>()?)
                }
                _ => return Err(wrong("list of string")),
            },
            Attr::Map => match value {
                Value::Object(m) => Value::Object(texts(m)),
                _ => return Err(wrong("map of string")),
            },
        })
    }

    /// A block of free names with texts: `env`, `meta`.
    pub(super) fn strings(&self, body: &Body) -> Result<Map<String, Value>, Problem> {
        let mut m = Map::new();
        for s in body {
            match s {
                Structure::Attribute(a) => {
                    m.insert(a.key.as_str().to_owned(), self.json(&a.value)?);
                }
                Structure::Block(b) => return Err(unsupported_block(b.ident.span(), b.ident.as_str())),
            }
        }
        Ok(texts(m))
    }

    /// A driver's config: anything goes.
    pub(super) fn free(&self, body: &Body) -> Result<Value, Problem> {
        let mut m = Map::new();
        for s in body {
            match s {
                Structure::Attribute(a) => {
                    m.insert(a.key.as_str().to_owned(), self.json(&a.value)?);
                }
                Structure::Block(b) => {
                    let mut inner = self.free(&b.body)?;
                    for label in b.labels.iter().rev() {
                        inner = json!({label.as_str(): [inner]});
                    }
                    let slot = m.entry(b.ident.as_str()).or_insert_with(|| json!([]));
                    if let Value::Array(list) = slot {
                        list.push(inner);
                    }
                }
            }
        }
        Ok(Value::Object(m))
    }

    /// A block the cluster keeps without knowing it.
    pub(super) fn guess(&self, b: &Block) -> Result<Value, Problem> {
        let mut m = Map::new();
        if let Some(label) = b.labels.first() {
            m.insert("Name".into(), json!(label.as_str()));
        }
        for s in &b.body {
            match s {
                Structure::Attribute(a) => {
                    let key = pascal(a.key.as_str());
                    let kind = if ["Interval", "Timeout", "Delay", "Ttl", "TTL", "Splay"].contains(&key.as_str()) {
                        Some(Attr::Duration)
                    } else {
                        None
                    };
                    let value = match kind {
                        Some(kind) => self.typed(&a.value, kind)?,
                        None => self.json(&a.value)?,
                    };
                    m.insert(key, value);
                }
                Structure::Block(inner) => {
                    let name = inner.ident.as_str();
                    if matches!(name, "meta" | "env" | "options" | "headers" | "mount_options" | "config" | "source") {
                        m.insert(pascal(name), self.free(&inner.body)?);
                        continue;
                    }
                    let value = self.guess(inner)?;
                    let many = matches!(name, "check" | "target" | "region");
                    if many {
                        let slot = m.entry(format!("{}s", pascal(name))).or_insert_with(|| json!([]));
                        if let Value::Array(list) = slot {
                            list.push(value);
                        }
                    } else {
                        m.insert(pascal(name), value);
                    }
                }
            }
        }
        Ok(Value::Object(m))
    }

    pub(super) fn network(&self, b: &Block) -> Result<Value, Problem> {
        let mut n = json!({
            "CIDR": "", "DNS": null, "Device": "", "DynamicPorts": null, "Hostname": "", "IP": "", "MBits": null, "Mode": "",
            "ReservedPorts": null, "CNI": null,
        });
        for s in &b.body {
            match s {
                Structure::Attribute(a) => match a.key.as_str() {
                    "mode" => n["Mode"] = self.typed(&a.value, Attr::Str)?,
                    "hostname" => n["Hostname"] = self.typed(&a.value, Attr::Str)?,
                    "mbits" => n["MBits"] = self.typed(&a.value, Attr::Int)?,
                    other => return Err(unsupported_argument(a.key.span(), other)),
                },
                Structure::Block(p) if p.has_ident("port") => {
                    let mut port = json!({"HostNetwork": "default", "IgnoreCollision": false, "Label": super::one_label(p, "port", self)?, "To": 0, "Value": 0});
                    let mut list = "DynamicPorts";
                    for a in p.body.attributes() {
                        match a.key.as_str() {
                            "static" => {
                                port["Value"] = self.typed(&a.value, Attr::Int)?;
                                list = "ReservedPorts";
                            }
                            "to" => port["To"] = self.typed(&a.value, Attr::Int)?,
                            "host_network" => port["HostNetwork"] = self.typed(&a.value, Attr::Str)?,
                            "ignore_collision" => port["IgnoreCollision"] = self.typed(&a.value, Attr::Bool)?,
                            other => return Err(unsupported_argument(a.key.span(), other)),
                        }
                    }
                    if let Value::Array(ports) = &mut n[list] {
                        ports.push(port);
                    } else {
                        n[list] = json!([port]);
                    }
                }
                Structure::Block(d) if d.has_ident("dns") => n["DNS"] = self.guess(d)?,
                Structure::Block(other) => return Err(unsupported_block(other.ident.span(), other.ident.as_str())),
            }
        }
        Ok(n)
    }
}

fn text(v: &Value) -> Option<String> {
    match v {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}

fn texts(m: Map<String, Value>) -> Map<String, Value> {
    m.into_iter().map(|(k, v)| (k, text(&v).map_or(Value::Null, Value::String))).collect()
}

/// `max_files` to `MaxFiles`, with the API's own spelling of abbreviations.
fn pascal(name: &str) -> String {
    name.split('_')
        .map(|part| match part {
            "id" => "ID".to_owned(),
            "ttl" => "TTL".to_owned(),
            "tls" => "TLS".to_owned(),
            "http" => "HTTP".to_owned(),
            p => {
                let mut chars = p.chars();
                chars.next().map(|c| c.to_uppercase().collect::<String>()).unwrap_or_default() + chars.as_str()
            }
        })
        .collect()
}

fn go_duration_error(s: &str) -> String {
    let digits = s.trim_start_matches(['-', '+']).trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let starts_with_digit = s.trim_start_matches(['-', '+']).starts_with(|c: char| c.is_ascii_digit());
    if s.is_empty() || !starts_with_digit {
        format!("time: invalid duration {s:?}")
    } else if digits.is_empty() {
        format!("time: missing unit in duration {s:?}")
    } else {
        let unit: String = digits.chars().take_while(|c| !c.is_ascii_digit() && *c != '.').collect();
        format!("time: unknown unit {unit:?} in duration {s:?}")
    }
}

fn upper(args: FuncArgs) -> Result<hcl::Value, String> {
    Ok(args[0].as_str().unwrap_or_default().to_uppercase().into())
}

fn lower(args: FuncArgs) -> Result<hcl::Value, String> {
    Ok(args[0].as_str().unwrap_or_default().to_lowercase().into())
}

fn trim(args: FuncArgs) -> Result<hcl::Value, String> {
    Ok(args[0].as_str().unwrap_or_default().trim().into())
}

fn join(args: FuncArgs) -> Result<hcl::Value, String> {
    let list: Vec<String> = args[1].as_array().into_iter().flatten().map(|v| v.as_str().unwrap_or_default().to_owned()).collect();
    Ok(list.join(args[0].as_str().unwrap_or_default()).into())
}

fn json_encode(args: FuncArgs) -> Result<hcl::Value, String> {
    serde_json::to_string(&args[0]).map(Into::into).map_err(|e| e.to_string())
}

/// `%s`, `%d` and `%v`, one after the other.
fn format_values(args: FuncArgs) -> Result<hcl::Value, String> {
    let values = args.into_values();
    let mut rest = values.iter().skip(1).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
    let mut out = String::new();
    let mut chars = values.first().and_then(|v| v.as_str()).unwrap_or_default().chars();
    while let Some(c) = chars.next() {
        match (c, c == '%') {
            (_, true) => match chars.next() {
                Some('%') => out.push('%'),
                Some(_) => out.push_str(&rest.next().ok_or("not enough arguments for format")?),
                None => out.push('%'),
            },
            (c, false) => out.push(c),
        }
    }
    Ok(out.into())
}
