//! Tool declarations from Rust types.

use super::message::Tool;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema};
use serde_json::Value;

impl Tool {
    /// A function tool whose arguments are the fields of `A`, to be read with
    /// [`super::ToolCall::parse`]. The fields' doc comments are for the model to read.
    ///
    /// ```
    /// use gpt_oss_puzzle::harmony::{Tool, ToolCall};
    ///
    /// /// Arguments of `add`.
    /// #[derive(schemars::JsonSchema, serde::Deserialize)]
    /// struct Add {
    ///     /// The first summand.
    ///     a: f64,
    ///     b: f64,
    /// }
    ///
    /// let tool = Tool::typed::<Add>("add", "Adds two numbers.");
    /// let call = ToolCall::function("call_0", "add", r#"{"a":1,"b":2}"#);
    /// let Add { a, b } = call.parse()?;
    /// assert_eq!(a + b, 3.0);
    /// # Ok::<(), gpt_oss_puzzle::Error>(())
    /// ```
    ///
    /// Types within `A` are written out where they stand, in the words that prompts can express; one
    /// that contains itself is declared as `any` there.
    pub fn typed<A: JsonSchema>(name: impl Into<String>, description: impl Into<String>) -> Tool {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        });
        let mut schema = settings.into_generator().into_root_schema_for::<A>();
        RecursiveTransform(simplify).transform(&mut schema);
        // The type's own name and doc comment: the tool has a name and a description.
        schema.remove("title");
        schema.remove("description");
        Tool::new(name, description, schema.to_value())
    }
}

/// Says what prompts could not express otherwise in words that they can: a type or null, which is what
/// an `Option` is, as that type and nullable, and a constant as an enum of one.
fn simplify(schema: &mut Schema) {
    let Some(map) = schema.as_object_mut() else { return };
    let is_null = |kind: &Value| kind == "null";
    let alternatives = map.get("anyOf").and_then(Value::as_array).map(Vec::as_slice);
    if let Some([Value::Object(value), null]) = alternatives
        && null.get("type").is_some_and(is_null)
    {
        let value = value.clone();
        map.shift_remove("anyOf");
        for (key, value) in value {
            map.entry(key).or_insert(value);
        }
        map.insert("nullable".into(), true.into());
    }
    let types = map.get("type").and_then(Value::as_array).map(Vec::as_slice);
    if let Some([kind, null]) = types
        && is_null(null)
    {
        let kind = kind.clone();
        map.insert("type".into(), kind);
        map.insert("nullable".into(), true.into());
        if let Some(Value::Array(names)) = map.get_mut("enum") {
            names.retain(|name| !name.is_null());
        }
    }
    if let Some(value) = map.shift_remove("const") {
        map.insert("enum".into(), Value::Array(vec![value]));
    }
}
