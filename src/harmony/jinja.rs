//! The Jinja environment of chat templates: what transformers gives them, in minijinja.

use super::python_json::{self, Style};
use crate::{Error, ErrorKind, Result};
use minijinja::Environment;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};

/// Instructions a template may run; a conversation of a thousand messages takes about a million.
const FUEL: u64 = 30_000_000;

/// The widest indentation `tojson` takes: some bound is needed, and nobody indents further.
const MAX_INDENT: usize = 64;

/// An environment without templates.
pub(super) fn environment() -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| error("cannot set up", e))?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
        },
    );
    Ok(environment)
}

/// transformers' `tojson`: Python's `json.dumps` without HTML escapes.
fn tojson(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    if value.is_undefined() {
        let message = "tojson of an undefined value";
        return Err(minijinja::Error::new(minijinja::ErrorKind::UndefinedError, message));
    }
    let failed = |e: serde_json::Error| {
        minijinja::Error::new(minijinja::ErrorKind::BadSerialization, "tojson failed")
            .with_source(e)
    };
    let mut value = serde_json::to_value(value).map_err(failed)?;
    let mut style = Style::default();
    style.indent = options.get("indent")?;
    if let Some(indent) = style.indent.filter(|indent| *indent > MAX_INDENT) {
        let message = format!("tojson with an indent of {indent}, expected at most {MAX_INDENT}");
        return Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message));
    }
    if style.indent.is_some() {
        style.item_separator = ",".into();
    }
    style.ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    if let Some(separators) = options.get::<Option<Vec<String>>>("separators")?
        && let Ok([item, key]) = <[String; 2]>::try_from(separators)
    {
        (style.item_separator, style.key_separator) = (item, key);
    }
    if options.get::<Option<bool>>("sort_keys")?.unwrap_or(false) {
        value.sort_all_objects();
    }
    options.assert_all_used()?;
    Ok(python_json::write(&value, style))
}

/// `date` (`YYYY-MM-DD`) in a format of C's strftime, as far as dates go.
pub(super) fn strftime(date: &str, format: &str) -> Result<String, minijinja::Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    if format == "%Y-%m-%d" {
        return Ok(date.to_owned());
    }
    let failed = |what: String| minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, what);
    let parts: Vec<&str> = date.split('-').collect();
    let month = parts
        .get(1)
        .and_then(|m| m.parse::<usize>().ok())
        .and_then(|m| MONTHS.get(m.checked_sub(1)?));
    let ([year, number, day], Some(month)) = (parts.as_slice(), month) else {
        return Err(failed(format!("date is {date:?}, expected YYYY-MM-DD")));
    };
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match if c == '%' { chars.next() } else { None } {
            None => out.push(c),
            Some('Y') => out.push_str(year),
            Some('m') => out.push_str(number),
            Some('d') => out.push_str(day),
            Some('B') => out.push_str(month),
            Some('b') => out.push_str(&month[..3]),
            Some('%') => out.push('%'),
            Some(other) => return Err(failed(format!("strftime_now has no %{other}"))),
        }
    }
    Ok(out)
}

/// A failure of a template as this crate's error.
#[cold]
pub(super) fn error(what: &str, e: minijinja::Error) -> Error {
    let line = e.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    let detail = e.detail().map_or_else(|| e.kind().to_string(), str::to_owned);
    Error::new(ErrorKind::Template, format!("the chat template {what}{line}: {detail}"))
        .with_source(e)
}
