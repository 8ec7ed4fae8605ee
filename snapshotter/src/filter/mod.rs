//! containerd's filters: `kind==active,labels."a.b"~=/^x/`.
//!
//! ```text
//! filter    := selector ("," selector)*          all of them must match
//! selector  := fieldpath (operator value)?       without an operator: the field is there
//! fieldpath := field ("." field)*
//! field     := quoted | [A-Za-z0-9_]+
//! operator  := "==" | "!=" | "~="
//! value     := quoted | anything but spaces and ","
//! quoted    := "..." with Go's escapes; after "~=" also /.../ and |...|
//! ```
//!
//! Several filters of one request are alternatives. The fields of a snapshot are `kind`, `name`,
//! `parent` and `labels.NAME`. A field that is not there is empty for `!=` and `~=`, and never
//! equal. This follows containerd's package `filters` to the letter, with one exception: a
//! regular expression that can't be compiled is refused, where containerd logs it and matches
//! nothing.

mod quote;
mod scan;

use regex::Regex;

use crate::error::{Error, Result};
use crate::store::records::Info;
use scan::{Scanner, Token};

/// What a `List` asked for: alternatives, each a list of conditions.
#[derive(Debug)]
pub struct Filter {
    /// Empty: everything matches.
    any: Vec<Vec<Selector>>,
}

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filter {
    /// Reads the filters of a request. None at all, or an empty one, match everything.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Filter> {
        let mut any = Vec::new();
        for text in filters {
            let text = text.as_ref();
            let mut selectors = Vec::new();
            if !text.is_empty() {
                Parser {
                    scanner: Scanner::new(text),
                }
                .selectors(&mut selectors)?;
            }
            any.push(selectors);
        }
        Ok(Filter { any })
    }

    /// Whether a snapshot is asked for.
    pub fn matches(&self, info: &Info) -> bool {
        self.any.is_empty()
            || self
                .any
                .iter()
                .any(|all| all.iter().all(|selector| selector.matches(info)))
    }
}

impl Selector {
    fn matches(&self, info: &Info) -> bool {
        let value = field(info, &self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted.as_str()),
            Test::NotEqual(other) => value.unwrap_or_default() != other,
            Test::Matches(pattern) => pattern.is_match(value.unwrap_or_default()),
        }
    }
}

fn field<'i>(info: &'i Info, path: &[String]) -> Option<&'i str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "kind" => Some(info.record.kind.as_str()),
        "name" => Some(&info.key),
        // There even if it is empty, as in containerd.
        "parent" => Some(info.record.parent.as_deref().unwrap_or_default()),
        "labels" => info.record.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}

struct Parser<'t> {
    scanner: Scanner<'t>,
}

impl Parser<'_> {
    fn selectors(&mut self, into: &mut Vec<Selector>) -> Result<()> {
        into.push(self.selector()?);
        loop {
            match self.scanner.peek() {
                Some(',') => {
                    self.scanner.scan();
                    into.push(self.selector()?);
                }
                None => return Ok(()),
                Some(other) => {
                    return Err(self.error(self.scanner.at(), &format!("unexpected {other:?}")));
                }
            }
        }
    }

    fn selector(&mut self) -> Result<Selector> {
        let path = self.field_path()?;
        if matches!(self.scanner.peek(), None | Some(',')) {
            return Ok(Selector {
                path,
                test: Test::Present,
            });
        }
        let (at, token) = self.scanner.scan();
        let Token::Operator(operator) = token else {
            return Err(self.unexpected(at, &token, "an operator (== != ~=)"));
        };
        let test = match operator {
            "==" => Test::Equal(self.value(false)?),
            "!=" => Test::NotEqual(self.value(false)?),
            "~=" => {
                let at = self.scanner.at();
                let pattern = self.value(true)?;
                let compiled = Regex::new(&pattern);
                Test::Matches(compiled.map_err(|error| self.error(at, &error.to_string()))?)
            }
            other => return Err(self.error(at, &format!("{other:?} is no operator"))),
        };
        Ok(Selector { path, test })
    }

    fn field_path(&mut self) -> Result<Vec<String>> {
        let mut path = vec![self.field()?];
        while self.scanner.peek() == Some('.') {
            self.scanner.scan();
            path.push(self.field()?);
        }
        Ok(path)
    }

    fn field(&mut self) -> Result<String> {
        match self.scanner.scan() {
            (_, Token::Field(text)) => Ok(text.to_owned()),
            (at, Token::Quoted(text)) => self.unquote(at, text, false),
            (at, token) => Err(self.unexpected(at, &token, "a field or a quoted text")),
        }
    }

    fn value(&mut self, is_pattern: bool) -> Result<String> {
        match self.scanner.scan() {
            (_, Token::Value(text) | Token::Field(text)) => Ok(text.to_owned()),
            (at, Token::Quoted(text)) => self.unquote(at, text, is_pattern),
            (at, token) => Err(self.unexpected(at, &token, "a value or a quoted text")),
        }
    }

    fn unquote(&self, at: usize, text: &str, is_pattern: bool) -> Result<String> {
        if !is_pattern && !text.starts_with('"') {
            return Err(self.error(at, "only a regular expression may stand in / or |"));
        }
        quote::unquote(text).ok_or_else(|| self.error(at, "the quoted text cannot be read"))
    }

    fn unexpected(&self, at: usize, token: &Token<'_>, wanted: &str) -> Error {
        match token {
            Token::Illegal(why) => self.error(at, why),
            _ => self.error(at, &format!("expected {wanted}")),
        }
    }

    /// The filter with the place marked, as containerd shows it.
    fn error(&self, at: usize, message: &str) -> Error {
        let text = self.scanner.text();
        let place = match text.get(at..).and_then(|rest| rest.chars().next()) {
            Some(here) => {
                format!(
                    "{} >|{here}|< {}",
                    &text[..at],
                    &text[at + here.len_utf8()..]
                )
            }
            None => text.to_owned(),
        };
        Error::BadFilter(format!("[{}]: {message}", place.escape_debug()))
    }
}

#[cfg(test)]
mod tests;
