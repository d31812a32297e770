//! The page and its parts, as HTML.

use crate::board::Note;
use std::fmt::Write;

pub(crate) const STYLE: &str = include_str!("style.css");
const PAGE: &str = include_str!("page.html");
const JOIN: &str = r#"<form method="get" action="/">
<label for="name">Your name</label>
<input id="name" name="name" maxlength="20" autocomplete="nickname" required>
<button>Join</button>
</form>"#;
const LEAVE: &str = r#"<form method="get" action="/"><button id="leave">Leave</button></form>"#;

/// The whole page, for somebody called `name` or for somebody who only looks.
pub(crate) fn page(name: &str, people: &str, board: &str) -> String {
    let join = if name.is_empty() { JOIN } else { LEAVE };
    let by = if name.is_empty() { "somebody" } else { name };
    // The parts are put in last: what people write is not looked at for more places to fill.
    let (before, after) = PAGE.split_once("{board}").unwrap_or((PAGE, ""));
    let before = before.replace("{join}", join);
    let (before, middle) = before.split_once("{people}").unwrap_or((&before, ""));
    let after = after.replace("{name}", &escape(by));
    [before, people, middle, board, &after].concat()
}

/// Who is here, and on which pod.
pub(crate) fn people<'a>(people: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut html = String::new();
    for (name, pod) in people {
        let (name, pod) = (escape(name), escape(pod));
        let _ = write!(html, "<li>{name} <small>on {pod}</small></li>");
    }
    match html.is_empty() {
        true => "<li>nobody</li>".to_owned(),
        false => html,
    }
}

pub(crate) fn board(notes: &[(u64, Note)]) -> String {
    let mut html = String::new();
    for (id, note) in notes {
        let (text, by) = (escape(&note.text), escape(&note.by));
        let _ = write!(
            html,
            r#"<li value="{id}"><span>{text}</span> <small>by {by}</small></li>"#
        );
    }
    html
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
