//! Nomad's filter language (go-bexpr), as far as lists use it: comparisons, `in`, `contains`, `matches`, `is empty`,
//! `and`, `or`, `not`, parentheses, and `any`/`all` over lists and maps. Parsed once a request.

mod eval;

use regex::{Regex, RegexBuilder};

pub(crate) use eval::Record;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Equal,
    NotEqual,
    In,
    NotIn,
    Matches,
    NotMatches,
    Empty,
    NotEmpty,
}

#[derive(Debug)]
pub(crate) enum Expr {
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Not(Box<Expr>),
    Match { selector: Vec<String>, op: Op, value: String, regex: Option<Regex> },
    Each { all: bool, selector: Vec<String>, names: (String, Option<String>), body: Box<Expr> },
}

/// A filter ready to be asked.
#[derive(Debug)]
pub(crate) struct Filter(Expr);

impl Filter {
    /// The error is what follows `failed to read filter expression: ` in Nomad's answer.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut p = Parser { text, at: 0, depth: 0, each: false };
        p.space();
        let expr = p.or()?;
        p.space();
        if p.at < text.len() {
            return Err(if p.each {
                p.unexpected(&["[ \\t\\r\\n]", "EOF"])
            } else {
                p.unexpected(&["\"and\"", "\"or\"", "[ \\t\\r\\n]", "EOF"])
            });
        }
        Ok(Self(expr))
    }

    pub(crate) fn accepts(&self, record: &dyn Record) -> Result<bool, String> {
        eval::holds(&self.0, record)
    }
}

/// Deeper nesting than this is an error, not a stack overflow.
const MAX_DEPTH: usize = 100;

/// Compiled expressions may be long lists of ids.
const REGEX_SIZE: usize = 256 * 1024 * 1024;

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    /// The expression just read ends with an `any` or `all`, which nothing may follow.
    each: bool,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn space(&mut self) -> bool {
        let start = self.at;
        while self.peek().is_some_and(|c| matches!(c, ' ' | '\t' | '\r' | '\n')) {
            self.at += 1;
        }
        self.at > start
    }

    /// `line:column (offset): no match found, expected: …`, both counted as pigeon parsers count them.
    fn unexpected(&self, expected: &[&str]) -> String {
        let before = &self.text[..self.at];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let list = match expected {
            [one] => (*one).to_owned(),
            [head @ .., last] => format!("{} or {last}", head.join(", ")),
            [] => String::new(),
        };
        format!("{line}:{column} ({}): no match found, expected: {list}", self.at)
    }

    fn literal(&mut self, text: &str) -> bool {
        let hit = self.rest().starts_with(text);
        if hit {
            self.at += text.len();
        }
        hit
    }

    /// A keyword: not the beginning of a longer name.
    fn word(&mut self, text: &str) -> bool {
        let next = self.rest().strip_prefix(text).map(|r| r.chars().next());
        let hit = matches!(next, Some(c) if c.is_none_or(|c| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')));
        if hit {
            self.at += text.len();
        }
        hit
    }

    fn or(&mut self) -> Result<Expr, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("expression is nested deeper than {MAX_DEPTH}"));
        }
        let out = self.or_inner();
        self.depth -= 1;
        out
    }

    /// `any` and `all` stand alone or at the end of an `or`; beside an `and` or a `not` they need parentheses, as in go-bexpr.
    fn or_inner(&mut self) -> Result<Expr, String> {
        if let Some(each) = self.any_or_all()? {
            return Ok(each);
        }
        let mut left = self.and()?;
        loop {
            let back = self.at;
            if !(self.space() && self.word("or") && self.space()) {
                self.at = back;
                self.each = false;
                return Ok(left);
            }
            if let Some(each) = self.any_or_all()? {
                return Ok(Expr::Or(Box::new(left), Box::new(each)));
            }
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
    }

    fn any_or_all(&mut self) -> Result<Option<Expr>, String> {
        for (word, all) in [("any", false), ("all", true)] {
            let back = self.at;
            if self.word(word) && self.space() && self.peek().is_some_and(|c| c.is_ascii_alphabetic() || c == '_') {
                let each = self.each(all)?;
                self.each = true;
                return Ok(Some(each));
            }
            self.at = back;
        }
        Ok(None)
    }

    fn and(&mut self) -> Result<Expr, String> {
        let mut left = self.not()?;
        loop {
            let back = self.at;
            if self.space() && self.word("and") && self.space() {
                left = Expr::And(Box::new(left), Box::new(self.not()?));
                continue;
            }
            self.at = back;
            return Ok(left);
        }
    }

    fn not(&mut self) -> Result<Expr, String> {
        let mut negated = false;
        loop {
            let back = self.at;
            if self.word("not") && self.space() {
                negated = !negated;
                continue;
            }
            self.at = back;
            let inner = self.single()?;
            return Ok(if negated { Expr::Not(Box::new(inner)) } else { inner });
        }
    }

    fn single(&mut self) -> Result<Expr, String> {
        if self.literal("(") {
            self.space();
            let inner = self.or()?;
            self.space();
            return if self.literal(")") {
                Ok(inner)
            } else {
                Err(self.unexpected(&["\")\"", "\"and\"", "\"or\"", "[ \\t\\r\\n]"]))
            };
        }
        self.comparison()
    }

    fn each(&mut self, all: bool) -> Result<Expr, String> {
        let selector = self.selector()?;
        self.space();
        if !self.word("as") {
            return Err(self.unexpected(&["\"as\""]));
        }
        self.space();
        let first = self.name()?;
        self.space();
        let second = if self.literal(",") {
            self.space();
            Some(self.name()?)
        } else {
            None
        };
        self.space();
        if !self.literal("{") {
            return Err(self.unexpected(&["\"{\""]));
        }
        self.space();
        let body = self.or()?;
        self.space();
        if !self.literal("}") {
            let end: &[&str] =
                if self.each { &["\"}\"", "[ \\t\\r\\n]"] } else { &["\"and\"", "\"or\"", "\"}\"", "[ \\t\\r\\n]"] };
            return Err(self.unexpected(end));
        }
        Ok(Expr::Each { all, selector, names: (first, second), body: Box::new(body) })
    }

    fn comparison(&mut self) -> Result<Expr, String> {
        let start = self.at;
        // `"value" in Selector` and `value in Selector`.
        if self.peek().is_some_and(|c| matches!(c, '"' | '`') || c.is_ascii_digit() || c == '-') {
            let value = self.value()?;
            return self.membership(value);
        }
        let selector = self.selector()?;
        let spaced = self.space();
        if spaced {
            let back = self.at;
            let negated = self.word("not") && self.space();
            if self.word("in") && self.space() {
                let value = self.text[start..].split([' ', '\t', '\r', '\n']).next().unwrap_or_default().to_owned();
                let selector = self.selector()?;
                return Ok(matcher(selector, if negated { Op::NotIn } else { Op::In }, value));
            }
            self.at = back;
        }
        let op = self.operator(spaced)?;
        if matches!(op, Op::Empty | Op::NotEmpty) {
            return Ok(matcher(selector, op, String::new()));
        }
        self.space();
        let value = self.value()?;
        let regex = match op {
            Op::Matches | Op::NotMatches => Some(
                RegexBuilder::new(&value)
                    .size_limit(REGEX_SIZE)
                    .build()
                    .map_err(|e| format!("failed to compile regular expression {value:?}: {e}"))?,
            ),
            _ => None,
        };
        Ok(Expr::Match { selector, op, value, regex })
    }

    fn membership(&mut self, value: String) -> Result<Expr, String> {
        let spaced = self.space();
        let negated = self.word("not") && self.space();
        if !spaced || !self.word("in") || !self.space() {
            return Err(self.unexpected(&["\"in\"", "\"not\"", "[ \\t\\r\\n]"]));
        }
        let selector = self.selector()?;
        Ok(matcher(selector, if negated { Op::NotIn } else { Op::In }, value))
    }

    fn operator(&mut self, spaced: bool) -> Result<Op, String> {
        let expected: &[&str] = if spaced {
            &["\"!=\"", "\"==\"", "\"contains\"", "\"in\"", "\"is\"", "\"matches\"", "\"not\"", "[ \\t\\r\\n]"]
        } else {
            &["\"!=\"", "\".\"", "\"==\"", "\"[\"", "[ \\t\\r\\n]", "[a-zA-Z0-9_]"]
        };
        if self.literal("==") {
            return Ok(Op::Equal);
        }
        if self.literal("!=") {
            return Ok(Op::NotEqual);
        }
        if !spaced {
            return Err(self.unexpected(expected));
        }
        let back = self.at;
        if self.word("is") && self.space() {
            let negated = self.word("not") && self.space();
            if self.word("empty") {
                return Ok(if negated { Op::NotEmpty } else { Op::Empty });
            }
        }
        self.at = back;
        let negated = self.word("not") && self.space();
        if self.word("contains") {
            return Ok(if negated { Op::NotIn } else { Op::In });
        }
        if self.word("matches") {
            return Ok(if negated { Op::NotMatches } else { Op::Matches });
        }
        self.at = back;
        Err(self.unexpected(expected))
    }

    fn name(&mut self) -> Result<String, String> {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.unexpected(&["[a-zA-Z]", "\"_\""]));
        }
        Ok(self.text[start..self.at].to_owned())
    }

    fn selector(&mut self) -> Result<Vec<String>, String> {
        if !self.peek().is_some_and(|c| c.is_ascii_alphabetic() || c == '_') {
            return Err(self.unexpected(&[
                "\"(\"",
                "\"-\"",
                "\"0\"",
                "\"\\\"\"",
                "\"`\"",
                "\"all\"",
                "\"any\"",
                "\"not\"",
                "[ \\t\\r\\n]",
                "[1-9]",
                "[a-zA-Z]",
            ]));
        }
        let mut out = vec![self.name()?];
        loop {
            if self.literal(".") {
                // Meta keys may hold hyphens and slashes only inside brackets.
                out.push(self.name()?);
            } else if self.literal("[") {
                self.space();
                out.push(self.value()?);
                self.space();
                if !self.literal("]") {
                    return Err(self.unexpected(&["\"]\""]));
                }
            } else {
                return Ok(out);
            }
        }
    }

    fn value(&mut self) -> Result<String, String> {
        match self.peek() {
            Some('"') => {
                let mut out = String::new();
                let mut chars = self.rest().char_indices().skip(1);
                while let Some((i, c)) = chars.next() {
                    match c {
                        '"' => {
                            self.at += i + 1;
                            return Ok(out);
                        }
                        '\\' => match chars.next().map(|(_, c)| c) {
                            Some('n') => out.push('\n'),
                            Some('t') => out.push('\t'),
                            Some('r') => out.push('\r'),
                            Some(c @ ('"' | '\\')) => out.push(c),
                            // Two digits are a byte in Go, four a code point; below 128 they are the same.
                            Some(kind @ ('x' | 'u')) => {
                                let digits = if kind == 'x' { 2 } else { 4 };
                                let hex: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
                                let code = u32::from_str_radix(&hex, 16).ok().filter(|n| kind == 'u' || *n < 128);
                                match code.and_then(char::from_u32) {
                                    Some(c) if hex.len() == digits => out.push(c),
                                    _ => return Err(self.unexpected(&["\"\\\"\""])),
                                }
                            }
                            // An escape Go does not know is no string at all.
                            _ => return Err(self.unexpected(&["\"\\\"\""])),
                        },
                        c => out.push(c),
                    }
                }
                self.at = self.text.len();
                Err(self.unexpected(&["\"\\\"\"", "[^\"]"]))
            }
            Some('`') => {
                let body = &self.rest()[1..];
                let Some(end) = body.find('`') else {
                    self.at = self.text.len();
                    return Err(self.unexpected(&["\"`\""]));
                };
                self.at += end + 2;
                Ok(body[..end].to_owned())
            }
            Some(c) if c.is_ascii_alphanumeric() || c == '-' || c == '_' => {
                let start = self.at;
                while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')) {
                    self.at += 1;
                }
                Ok(self.text[start..self.at].to_owned())
            }
            _ => Err(self.unexpected(&["\"-\"", "\"0\"", "\"\\\"\"", "\"`\"", "[ \\t\\r\\n]", "[1-9]", "[a-zA-Z]"])),
        }
    }
}

fn matcher(selector: Vec<String>, op: Op, value: String) -> Expr {
    Expr::Match { selector, op, value, regex: None }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Filter;

    fn ask(filter: &str, value: &Value) -> bool {
        Filter::parse(filter).unwrap().accepts(value).unwrap()
    }

    #[test]
    fn the_language() {
        let v = json!({
            "ID": "abc", "Version": 3, "Stop": false, "Meta": {"owner": "me", "a.b": "x"}, "Datacenters": ["dc1", "dc2"],
            "TaskStates": {"t": {"State": "running", "Events": [{"Type": "Killing"}]}, "u": {"State": "dead", "Events": []}},
            "DesiredTransition": {"Migrate": true}, "Note": "", "None": null,
        });
        for yes in [
            r#"ID == "abc""#,
            r#"ID == "\x61\u0062c""#,
            "ID == abc",
            r#"ID != "x" and Version == 3"#,
            "Stop == false or Version == 9",
            r#"not ID == "x""#,
            r#"(ID == "x" or Meta.owner == "me") and Stop != true"#,
            r#""dc1" in Datacenters"#,
            r#"Datacenters contains "dc2""#,
            r#"Datacenters not contains "dc3""#,
            r#"ID matches "^(abc|def)$""#,
            r#"ID not matches "^x""#,
            "Note is empty",
            "Datacenters is not empty",
            r#"Meta["a.b"] == "x""#,
            r#"Meta.nothing != "x""#,
            r#"owner in Meta"#,
            "DesiredTransition.Migrate == true",
            r#"any TaskStates as _, s { s.State == "running" and (any s.Events as _, e { e.Type == "Killing" }) }"#,
            r#"any TaskStates as k, s { k == "u" and s.State == "dead" }"#,
            r#"all Datacenters as d { d matches "^dc" }"#,
        ] {
            assert!(ask(yes, &v), "{yes}");
        }
        for no in [r#"Meta.nothing == "x""#, r#"all TaskStates as _, s { s.State == "dead" }"#, "Version == 4"] {
            assert!(!ask(no, &v), "{no}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        assert!(Filter::parse(&"(".repeat(100_000)).is_err());
    }

    #[test]
    fn errors_have_a_place() {
        let e = Filter::parse("  Bad =").unwrap_err();
        assert_eq!(
            e,
            "1:7 (6): no match found, expected: \"!=\", \"==\", \"contains\", \"in\", \"is\", \"matches\", \"not\" or [ \\t\\r\\n]"
        );
    }
}
