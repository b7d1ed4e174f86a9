//! Text for man pages.

/// Running text, white space made even; what stands between backquotes is bold.
pub fn text(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let pieces: Vec<&str> = words.split('`').collect();
    // An odd number of backquotes means something else.
    if pieces.len().is_multiple_of(2) {
        return line(&words);
    }
    let bold = |(index, piece): (usize, &&str)| {
        let piece = escaped(piece);
        if index.is_multiple_of(2) { piece } else { format!("\\fB{piece}\\fR") }
    };
    guarded(pieces.iter().enumerate().map(bold).collect())
}

/// One line as it is, also the argument of a macro.
pub fn line(text: &str) -> String {
    guarded(escaped(text))
}

/// What begins with a dot is no macro.
fn guarded(text: String) -> String {
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

/// Characters that stand for themselves, also when somebody copies them from the page.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '`' => out.push_str("\\(ga"),
            '"' => out.push_str("\\(dq"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_what_it_is() {
        assert_eq!(text("a\n  b-c"), r"a b\-c");
        assert_eq!(text("what `bind` began"), r"what \fBbind\fR began");
        assert_eq!(text("one ` only"), r"one \(ga only");
        assert_eq!(text(r#".so 'x' \n "y""#), r"\&.so \(aqx\(aq \en \(dqy\(dq");
        assert_eq!(line("a  b"), "a  b");
    }
}
