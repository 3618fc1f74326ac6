//! Text that a guest has chosen, on its way to a log, a terminal or an engine.

/// Most characters of a sentence.
const MOST: usize = 1000;

/// The text without control characters: none reaches a terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The text as a sentence of bounded length, without control characters.
pub fn sentence(text: &str) -> String {
    let mut cut: String = text.chars().take(MOST).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(MOST).is_some() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_controls_a_terminal() {
        assert_eq!(sentence("\x1b]0;title\x07 a\r\nb\u{9b}2J é"), "?]0;title? a??b?2J é");
        assert_eq!(printable("\x1b[2J\0"), "?[2J?");
    }

    #[test]
    fn a_sentence_ends() {
        assert_eq!(sentence(&"é".repeat(MOST)), "é".repeat(MOST));
        let long = sentence(&"é".repeat(5_000_000));
        assert_eq!((long.chars().count(), long.ends_with('…')), (MOST + 1, true));
    }
}
