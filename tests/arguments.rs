//! The arguments of tools: declared from types, parsed into them, and repaired.

use gpt_oss_puzzle::ErrorKind;
use gpt_oss_puzzle::harmony::{ArgumentsError, ArgumentsRepair, ToolCall};
use std::error::Error as _;

#[test]
fn arguments_that_do_not_parse_are_told_whole() {
    #[derive(Debug, serde::Deserialize)]
    struct City {
        #[allow(dead_code)]
        city: String,
    }
    let call = ToolCall::function("call_0", "weather", r#"{"town":"Bonn"}"#);
    let error = call.parse::<City>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ToolArguments);
    let what = "missing field `city` at line 1 column 15";
    assert_eq!(
        error.to_string(),
        format!("arguments of tool call weather do not parse: {what}, found {:?}", call.arguments)
    );
    let cause = error.source().and_then(|e| e.downcast_ref::<ArgumentsError>()).unwrap();
    assert_eq!((cause.tool.as_str(), cause.arguments.as_str()), ("weather", r#"{"town":"Bonn"}"#));
    assert_eq!((cause.to_string().as_str(), cause.error.column()), (what, 15));
}

#[test]
fn arguments_are_repaired_where_nothing_is_made_up() {
    use ArgumentsRepair::{ClosedBrackets, StrippedTrailing, UnwrappedArray};
    let stripped = |text: &str| StrippedTrailing(text.into());
    let closed = |text: &str| ClosedBrackets(text.into());
    let cases: [(&str, &str, Vec<ArgumentsRepair>); 12] = [
        (r#"{"a":1}"#, r#"{"a":1}"#, vec![]),
        (" {\"a\": 1}\n", r#"{"a": 1}"#, vec![]),
        (r#"{"a":1}]"#, r#"{"a":1}"#, vec![stripped("]")]),
        (r#"{"a":1}  }} done"#, r#"{"a":1}"#, vec![stripped("}} done")]),
        (r#"{"a":1}{"a":2}"#, r#"{"a":1}"#, vec![stripped(r#"{"a":2}"#)]),
        (r#"[{"a":1}]"#, r#"{"a":1}"#, vec![UnwrappedArray]),
        (r#"[ {"a":[1]} ],"#, r#"{"a":[1]}"#, vec![stripped(","), UnwrappedArray]),
        (r#"[{"a":[1"#, r#"{"a":[1]}"#, vec![closed("]}]"), UnwrappedArray]),
        (r#"{"a":{"b":"]}\"["#, "", vec![]),
        (r#"{"a":{"b":"]}\"["}"#, r#"{"a":{"b":"]}\"["}}"#, vec![closed("}")]),
        (r#"{"a":[{"b":1},{"c":null"#, r#"{"a":[{"b":1},{"c":null}]}"#, vec![closed("}]}")]),
        // The text is the model's: numbers are not rewritten.
        (
            "[{\"a\":1.50e3}]\u{1f327}",
            r#"{"a":1.50e3}"#,
            vec![stripped("\u{1f327}"), UnwrappedArray],
        ),
    ];
    for (arguments, expected, repairs) in cases {
        let repaired = ToolCall::function("c", "f", arguments).repaired_arguments();
        if expected.is_empty() {
            assert!(repaired.is_err(), "{arguments}");
            continue;
        }
        let repaired = repaired.unwrap();
        assert_eq!((repaired.arguments.as_str(), &repaired.repairs), (expected, &repairs));
        // Once repaired, nothing is left to do.
        let again = ToolCall::function("c", "f", &repaired.arguments).repaired_arguments().unwrap();
        assert_eq!((again.arguments, again.repairs), (repaired.arguments, vec![]));
    }
    let hopeless = [
        "",
        "ls -R",
        "[",
        "[[1]]",
        "1",
        "null",
        "\"a\"",
        "[{},{}]",
        "{\"a\" 1}",
        "{\"a\":1]",
        "{\"a\":",
        "{\"a\":1,",
        "{\"a\":\"x",
        "]",
        "\\",
        "{\"a\":\"\\",
        "🌧",
    ];
    for arguments in hopeless {
        let error = ToolCall::function("c", "f", arguments).repaired_arguments().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ToolArguments);
        assert_eq!(
            error.to_string(),
            format!(
                "arguments of tool call f cannot be repaired to a JSON object, found {arguments:?}"
            )
        );
    }
    // Deep nesting is neither slow nor a stack overflow.
    assert!(ToolCall::function("c", "f", "[".repeat(100_000)).repaired_arguments().is_err());
    assert!(ToolCall::function("c", "f", "{\"a\":".repeat(100_000)).repaired_arguments().is_err());
    let mut cut = ToolCall::function("c", "f", r#"{"a":1"#);
    cut.incomplete = true;
    let error = cut.repaired_arguments().unwrap_err().to_string();
    assert_eq!(error, "arguments of tool call f are cut off, found \"{\\\"a\\\":1\"");
}

#[cfg(not(feature = "schemars"))]
#[test]
fn typed_tools() {
    eprintln!("NOT TESTED: typed tools, which take --features schemars");
}

#[cfg(feature = "schemars")]
mod typed {
    use gpt_oss_puzzle::harmony::{Dialect, Message, RenderRequest, Renderer, Tool, ToolCall};
    use schemars::JsonSchema;
    use serde::Deserialize;
    use serde_json::json;

    /// Not for the model.
    #[derive(Debug, PartialEq, JsonSchema, Deserialize)]
    #[allow(dead_code)]
    struct Forecast {
        /// Where.
        place: Place,
        /// How many days.
        days: u8,
        unit: Option<Unit>,
        style: Option<Style>,
        #[serde(default)]
        tags: Vec<String>,
        note: Option<String>,
        nearby: Option<Vec<Place>>,
        origin: Option<Place>,
        /// A property with a keyword's name.
        #[serde(rename = "const")]
        constant: bool,
        other: Option<Box<Forecast>>,
    }

    #[derive(Debug, PartialEq, JsonSchema, Deserialize)]
    struct Place {
        city: String,
        /// Two letters.
        country: Option<String>,
    }

    #[derive(Debug, PartialEq, JsonSchema, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Unit {
        Celsius,
        Fahrenheit,
    }

    #[derive(Debug, PartialEq, JsonSchema, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Style {
        /// One line.
        Short,
        /// With maps.
        Long,
    }

    fn declared(tool: Tool, dialect: Dialect) -> String {
        let request = RenderRequest {
            messages: &[Message::user("Hi")],
            tools: std::slice::from_ref(&tool),
            date: Some("2026-01-02"),
            ..RenderRequest::default()
        };
        let text = Renderer::Native(dialect).render_text(&request).unwrap();
        let start = text.find("namespace functions {\n\n").unwrap() + 23;
        text[start..text.find("\n\n} // namespace").unwrap()].to_owned()
    }

    #[test]
    fn a_type_declares_the_arguments_that_parse_into_it() {
        let tool = Tool::typed::<Forecast>("forecast", "The weather to come.");
        assert_eq!(
            (tool.name.as_str(), tool.description.as_str()),
            ("forecast", "The weather to come.")
        );
        let schema = tool.parameters.as_ref().unwrap();
        assert_eq!(schema["required"], json!(["place", "days", "const"]));
        assert!(schema.get("title").is_none() && schema.get("$schema").is_none(), "{schema}");
        assert_eq!(
            declared(tool.clone(), Dialect::harmony()),
            r#"// The weather to come.
type forecast = (_: {
// Where.
place:     // Where.
{
    city: string,
    // Two letters.
    country?: string | null,
    },
// How many days.
days: number,
unit?: "celsius" | "fahrenheit" | null,
style?:
 | "short" // One line.
 | "long" // With maps.
,
tags?: string[], // default: []
note?: string | null,
nearby?: {
    city: string,
    // Two letters.
    country?: string | null,
    }[],
origin?: {
    city: string,
    // Two letters.
    country?: string | null,
    },
// A property with a keyword's name.
const: boolean,
other?: any | null,
}) => any;"#
        );
        let template = declared(tool.clone(), Dialect::template());
        for line in [
            "unit?: \"celsius\" | \"fahrenheit\",\n",
            "style?: \"short\"// One line. | \n\"long\"// With maps.,\n",
            "note?: string | null,\n",
            "days: number,\n",
            "const: boolean,\n",
        ] {
            assert!(template.contains(line), "{template}");
        }
        let call = ToolCall::function(
            "call_0",
            "forecast",
            r#"{"place":{"city":"Bonn"},"days":3,"unit":"celsius","const":true}"#,
        );
        let parsed: Forecast = call.parse().unwrap();
        assert_eq!((parsed.days, parsed.unit), (3, Some(Unit::Celsius)));
    }
}
