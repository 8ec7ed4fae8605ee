//! From text to tokens, as containerd's `filters/scanner.go`.

/// A piece of a filter.
#[derive(Debug, PartialEq)]
pub(super) enum Token<'t> {
    Quoted(&'t str),
    Value(&'t str),
    Field(&'t str),
    Operator(&'t str),
    /// `,` or `.`
    Separator,
    End,
    /// A character that begins no token.
    Other,
    Illegal(&'static str),
}

/// Where the parser is in the text.
pub(super) struct Scanner<'t> {
    text: &'t str,
    at: usize,
    /// After an operator comes a value, which may hold more characters than a field.
    value: bool,
}

impl<'t> Scanner<'t> {
    pub(super) fn new(text: &'t str) -> Scanner<'t> {
        Scanner {
            text,
            at: 0,
            value: false,
        }
    }

    pub(super) fn text(&self) -> &'t str {
        self.text
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next character, spaces included.
    pub(super) fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) {
        while self.peek().is_some_and(&wanted) {
            self.next();
        }
    }

    /// The next token and where it begins.
    pub(super) fn scan(&mut self) -> (usize, Token<'t>) {
        self.take_while(char::is_whitespace);
        let begin = self.at;
        let Some(first) = self.next() else {
            return (begin, Token::End);
        };
        let token = match first {
            '\0' => Token::Illegal("unexpected null"),
            '"' | '/' | '|' => match self.quoted(first) {
                Ok(()) => Token::Quoted(&self.text[begin..self.at]),
                Err(why) => Token::Illegal(why),
            },
            ',' | '.' => {
                self.value = false;
                Token::Separator
            }
            '=' | '!' | '~' => {
                self.take_while(|next| matches!(next, '=' | '!' | '~'));
                self.value = true;
                Token::Operator(&self.text[begin..self.at])
            }
            _ if self.value => {
                self.value = false;
                self.take_while(|next| next != ',' && !next.is_whitespace() && !next.is_control());
                Token::Value(&self.text[begin..self.at])
            }
            _ if is_field(first) => {
                self.take_while(is_field);
                Token::Field(&self.text[begin..self.at])
            }
            _ => Token::Other,
        };
        (begin, token)
    }

    /// Moves past a quoted text. What the escapes mean is `unquote`'s business.
    fn quoted(&mut self, quote: char) -> Result<(), &'static str> {
        const OPEN: &str = "the quoted text has no end";
        loop {
            match self.next().ok_or(OPEN)? {
                '\n' => return Err(OPEN),
                '\\' => {
                    self.next().ok_or(OPEN)?;
                }
                next if next == quote => return Ok(()),
                _ => {}
            }
        }
    }
}

fn is_field(next: char) -> bool {
    next == '_' || next.is_ascii_alphanumeric()
}
