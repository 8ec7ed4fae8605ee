//! Go's quoted strings, with `/` and `|` as quotes beside `"`, as containerd's `filters/quote.go`.

/// The text that a quoted text means, or `None` if it is not well formed or not UTF-8.
pub(super) fn unquote(quoted: &str) -> Option<String> {
    let quote = quoted.chars().next()?;
    let mut rest = quoted.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some(next) = rest.chars().next() {
        rest = &rest[next.len_utf8()..];
        if next == quote || next == '\n' {
            return None;
        }
        if next == '\\' {
            rest = unescape(rest, quote, &mut bytes)?;
        } else {
            bytes.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    String::from_utf8(bytes).ok()
}

/// Reads what follows a backslash, and answers what follows that.
fn unescape<'t>(text: &'t str, quote: char, into: &mut Vec<u8>) -> Option<&'t str> {
    let kind = text.chars().next()?;
    let rest = &text[kind.len_utf8()..];
    let byte = match kind {
        'a' => 7,
        'b' => 8,
        't' => b'\t',
        'n' => b'\n',
        'v' => 11,
        'f' => 12,
        'r' => b'\r',
        '\\' => b'\\',
        // A quote is escaped only in its own kind of quotes.
        '"' | '/' | '|' if kind == quote => u8::try_from(kind).ok()?,
        'x' => {
            let (value, rest) = digits(rest, 2, 16)?;
            into.push(u8::try_from(value).ok()?);
            return Some(rest);
        }
        '0'..='7' => {
            let (value, rest) = digits(text, 3, 8)?;
            into.push(u8::try_from(value).ok()?);
            return Some(rest);
        }
        'u' | 'U' => {
            let (value, rest) = digits(rest, if kind == 'u' { 4 } else { 8 }, 16)?;
            let value = char::from_u32(value)?;
            into.extend_from_slice(value.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(rest);
        }
        _ => return None,
    };
    into.push(byte);
    Some(rest)
}

fn digits(text: &str, count: usize, radix: u32) -> Option<(u32, &str)> {
    let (number, rest) = text.split_at_checked(count)?;
    // from_str_radix would take a sign.
    if !number.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    Some((u32::from_str_radix(number, radix).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::unquote;

    #[test]
    fn escapes_mean_what_they_mean_in_go() {
        for (quoted, text) in [
            (r#""plain""#, "plain"),
            (r#""a\"b""#, "a\"b"),
            (r"/a\/b/", "a/b"),
            (r"|a\|b|", "a|b"),
            (r#""\x41\101\u00e4\U0001F600\n\\""#, "AAä😀\n\\"),
            (r#""\xc3\xa4""#, "ä"),
            (r#""""#, ""),
        ] {
            assert_eq!(unquote(quoted).as_deref(), Some(text), "{quoted}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for quoted in [
            r#""\q""#,
            r#""\/""#,
            r#""\x4""#,
            r#""\x+1""#,
            r#""\400""#,
            r#""\ud800""#,
            r#""\U00110000""#,
            r#""\xff""#,
            r#"""#,
            r#""\""#,
            "\"a\nb\"",
        ] {
            assert_eq!(unquote(quoted), None, "{quoted}");
        }
    }
}
