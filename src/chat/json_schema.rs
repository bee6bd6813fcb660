//! JSON schemas on their way to [`super::grammar`]: what they leave open and should not.

use serde_json::{Map, Value, json};

/// Between the parts of JSON: nothing, a space, or a line's end and an indentation. Schemas allow any
/// whitespace, in which a model can lose itself.
const WHITESPACE: &str = r"\x20|\r?\n[\x20\t]{0,40}";

/// The schema with bounded whitespace and without the integer -0, which is one to a schema but not to
/// serde_json.
pub(super) fn prepare(schema: &Value) -> Value {
    let mut schema = schema.clone();
    without_negative_zero(&mut schema);
    if let Some(map) = schema.as_object_mut() {
        let settings = map.entry("x-guidance").or_insert_with(|| json!({}));
        if let Some(settings) = settings.as_object_mut() {
            settings.entry("whitespace_pattern").or_insert(WHITESPACE.into());
        }
    }
    schema
}

/// Splits every type of integers around 0 into the negative ones and the others.
fn without_negative_zero(schema: &mut Value) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(without_negative_zero),
        Value::Object(map) => {
            // These have values, not schemas.
            let schemas = map.iter_mut().filter(|(keyword, _)| {
                !["enum", "const", "default", "examples"].contains(&keyword.as_str())
            });
            schemas.for_each(|(_, schema)| without_negative_zero(schema));
            if let Some(cases) = cases(map) {
                *map = Map::from_iter([("anyOf".to_owned(), Value::Array(cases))]);
            }
        }
        _ => {}
    }
}

/// The cases of a type of integers around 0, and of others beside them.
fn cases(map: &Map<String, Value>) -> Option<Vec<Value>> {
    let others: Vec<&Value> = match map.get("type")? {
        Value::String(name) if name == "integer" => Vec::new(),
        Value::Array(names) if names.iter().any(|name| name == "integer") => {
            names.iter().filter(|name| *name != "integer").collect()
        }
        _ => return None,
    };
    let combined = ["enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions"];
    let bound = |keyword: &str| map.get(keyword).and_then(Value::as_f64);
    let (minimum, maximum) = (bound("minimum"), bound("maximum"));
    if combined.iter().any(|keyword| map.contains_key(*keyword))
        // A number is an integer too, and -0 is a number.
        || others.iter().any(|name| *name == "number")
        || minimum.is_some_and(|minimum| minimum >= 0.0)
        || maximum.is_some_and(|maximum| maximum < 0.0)
    {
        return None;
    }
    let case = |kind: Value, bound: Option<(&str, i64)>| {
        let mut case = map.clone();
        case.insert("type".into(), kind);
        if let Some((keyword, value)) = bound {
            case.insert(keyword.into(), value.into());
        }
        Value::Object(case)
    };
    let mut cases = vec![
        case("integer".into(), Some(("maximum", -1))),
        case("integer".into(), Some(("minimum", 0))),
    ];
    if !others.is_empty() {
        cases.push(case(json!(others), None));
    }
    Some(cases)
}

#[cfg(test)]
mod tests {
    use super::{prepare, without_negative_zero};
    use serde_json::json;

    #[test]
    fn integers_around_zero_are_split() {
        let split = |mut schema| {
            without_negative_zero(&mut schema);
            schema
        };
        let (low, high) =
            (json!({"type": "integer", "maximum": -1}), json!({"type": "integer", "minimum": 0}));
        assert_eq!(split(json!({"type": "integer"})), json!({"anyOf": [low, high]}));
        assert_eq!(
            split(json!({"items": {"type": ["integer", "null"], "minimum": -5, "maximum": 7}})),
            json!({"items": {"anyOf": [
                {"type": "integer", "minimum": -5, "maximum": -1},
                {"type": "integer", "minimum": 0, "maximum": 7},
                {"type": ["null"], "minimum": -5, "maximum": 7},
            ]}})
        );
        for same in [
            json!({"type": "integer", "minimum": 0}),
            json!({"type": "integer", "maximum": -1}),
            json!({"type": "integer", "enum": [-1, 0]}),
            json!({"type": ["number", "integer"]}),
            json!({"type": "number"}),
            json!({"const": {"type": "integer"}}),
            json!({"properties": {"type": {"enum": [{"type": "integer"}]}}}),
            json!(true),
        ] {
            assert_eq!(split(same.clone()), same);
        }
    }

    #[test]
    fn settings_are_the_callers_where_there_are_any() {
        let settings = |schema| prepare(&schema)["x-guidance"].clone();
        assert!(settings(json!({}))["whitespace_pattern"].is_string());
        let own = json!({"whitespace_pattern": " ", "coerce_one_of": true});
        assert_eq!(settings(json!({"x-guidance": own})), own);
        assert_eq!(prepare(&json!(true)), json!(true));
    }
}
