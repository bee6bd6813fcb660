//! JSON as Python's `json.dumps(ensure_ascii=False)` writes it, which is what models saw in training:
//! `", "` and `": "` between things, floats as `repr` prints them. `serde_json` differs in both.

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::Formatter;
use std::io::{self, Write};

/// How to write; the keyword arguments of transformers' `tojson` filter.
#[derive(Clone, Debug)]
pub(super) struct Style {
    pub(super) indent: Option<usize>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) ensure_ascii: bool,
    depth: usize,
    filled: bool,
}

impl Default for Style {
    fn default() -> Style {
        Style {
            indent: None,
            item_separator: ", ".into(),
            key_separator: ": ".into(),
            ensure_ascii: false,
            depth: 0,
            filled: false,
        }
    }
}

/// `value` in the default style.
pub(super) fn to_string(value: &Value) -> String {
    write(value, Style::default())
}

/// `value` in `style`.
pub(super) fn write(value: &Value, style: Style) -> String {
    let mut out = Vec::new();
    // Writing a JSON value to memory has no failure, and the formatter writes nothing but UTF-8.
    let _ = value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, style));
    String::from_utf8_lossy(&out).into_owned()
}

impl Style {
    fn newline<W: ?Sized + Write>(&self, w: &mut W) -> io::Result<()> {
        match self.indent {
            Some(width) => {
                w.write_all(("\n".to_owned() + &" ".repeat(width * self.depth)).as_bytes())
            }
            None => Ok(()),
        }
    }

    fn begin<W: ?Sized + Write>(&mut self, w: &mut W, bracket: &str) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        w.write_all(bracket.as_bytes())
    }

    fn end<W: ?Sized + Write>(&mut self, w: &mut W, bracket: &str) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.newline(w)?;
        }
        self.filled = true;
        w.write_all(bracket.as_bytes())
    }

    fn separate<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if !first {
            w.write_all(self.item_separator.as_bytes())?;
        }
        self.newline(w)
    }
}

impl Formatter for Style {
    fn begin_array<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.begin(w, "[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.end(w, "]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.separate(w, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.begin(w, "{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.end(w, "}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.separate(w, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(self.key_separator.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, w: &mut W, value: f64) -> io::Result<()> {
        w.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        w: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        // Python escapes DEL and serde_json does not only under ensure_ascii; all else is equal.
        if !self.ensure_ascii {
            return w.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        for c in fragment.chars() {
            if c.is_ascii() {
                write!(w, "{c}")?;
            } else {
                for unit in c.encode_utf16(&mut units) {
                    write!(w, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// Python's `repr` of a float: the shortest digits that read back, positional from 1e-4 to 1e16.
fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{value:?}").replace("e0", "");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn spacing_and_text_are_pythons() {
        let value = json!({"a": [1, "é<&>'\"\n\u{1}"], "b": {}, "c": [], "d": null, "e": true});
        assert_eq!(
            to_string(&value),
            r#"{"a": [1, "é<&>'\"\n\u0001"], "b": {}, "c": [], "d": null, "e": true}"#
        );
        let style = Style {
            indent: Some(2),
            item_separator: ",".into(),
            ensure_ascii: true,
            ..Style::default()
        };
        let value = json!({"a": [1, []], "b": "é🌧"});
        assert_eq!(
            write(&value, style),
            "{\n  \"a\": [\n    1,\n    []\n  ],\n  \"b\": \"\\u00e9\\ud83c\\udf27\"\n}"
        );
    }

    #[test]
    fn floats_are_pythons() {
        // Each line is `repr` of the same literal in Python 3.12.
        for (value, repr) in [
            (1.5, "1.5"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (1e15, "1000000000000000.0"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (1e16, "1e+16"),
            (1e100, "1e+100"),
            (5e-324, "5e-324"),
        ] {
            assert_eq!(float(value), repr);
        }
    }
}
