//! Function tools as TypeScript declarations, the notation the model was trained to read, in the two
//! forms in circulation: OpenAI's harmony library and the checkpoints' chat template. They disagree
//! in many small ways, and both have oddities that are kept, because the model saw them.

use super::message::Tool;
use super::python_json;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Which of the two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TypeScript {
    /// OpenAI's harmony library: nested objects indented, with their descriptions and defaults.
    Harmony,
    /// The chat template: nested objects flat, their descriptions and defaults lost.
    Template,
}

/// The section that declares `tools`, from its heading to the end of the namespace.
pub(super) fn functions(tools: &[Tool], form: TypeScript) -> String {
    let mut out = String::from("## functions\n\nnamespace functions {\n\n");
    for tool in tools {
        match form {
            TypeScript::Harmony => harmony::declaration(&mut out, tool),
            TypeScript::Template => template::declaration(&mut out, tool),
        }
    }
    out.push_str("} // namespace functions");
    out
}

fn text<'a>(schema: &'a Value, key: &str) -> Option<&'a str> {
    schema.get(key).and_then(Value::as_str).filter(|t| !t.is_empty())
}

fn list<'a>(schema: &'a Value, key: &str) -> Option<&'a Vec<Value>> {
    schema.get(key).and_then(Value::as_array).filter(|list| !list.is_empty())
}

fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties").and_then(Value::as_object).filter(|map| !map.is_empty())
}

fn nullable(schema: &Value) -> bool {
    schema.get("nullable").is_some_and(|v| *v == Value::Bool(true))
}

fn optional_mark(schema: &Value, name: &str) -> &'static str {
    if list(schema, "required").is_some_and(|r| r.iter().any(|v| v == name)) { "" } else { "?" }
}

fn quoted_union(names: &[Value]) -> String {
    let names: Vec<String> = names.iter().map(|v| format!("\"{}\"", plain(v))).collect();
    names.join(" | ")
}

/// A string as it is, anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| python_json::to_string(value), str::to_owned)
}

/// The chat template's form.
mod template {
    use super::*;

    pub(super) fn declaration(out: &mut String, tool: &Tool) {
        *out += &format!("// {}\ntype {} = ", tool.description, tool.name);
        let Some((schema, properties)) =
            tool.parameters.as_ref().and_then(|s| Some((s, properties(s)?)))
        else {
            *out += "() => any;\n\n";
            return;
        };
        *out += "(_: {\n";
        for (name, property) in properties {
            if let Some(description) = text(property, "description") {
                *out += &format!("// {description}\n");
            }
            *out += &format!("{name}{}: {}", optional_mark(schema, name), type_of(property));
            if let Some(default) = property.get("default") {
                *out += &if list(property, "enum").is_some() {
                    format!(", // default: {}", plain(default))
                } else if list(property, "oneOf").is_some() {
                    format!("// default: {}", plain(default))
                } else {
                    format!(", // default: {}", python_json::to_string(default))
                };
            }
            *out += ",\n";
        }
        *out += "}) => any;\n\n";
    }

    fn type_of(schema: &Value) -> String {
        let or_null = if nullable(schema) { " | null" } else { "" };
        match schema.get("type") {
            Some(Value::String(kind)) if kind == "array" => array_of(schema) + or_null,
            Some(Value::Array(kinds)) if !kinds.is_empty() => {
                kinds.iter().map(plain).collect::<Vec<_>>().join(" | ")
            }
            kind => match (list(schema, "oneOf"), kind.and_then(Value::as_str)) {
                (Some(variants), _) => union_of(variants),
                (None, Some("string")) => match list(schema, "enum") {
                    Some(names) => quoted_union(names),
                    None => format!("string{or_null}"),
                },
                (None, Some("number" | "integer")) => "number".into(),
                (None, Some("boolean")) => "boolean".into(),
                (None, Some("object")) => object_of(schema),
                _ => "any".into(),
            },
        }
    }

    fn array_of(schema: &Value) -> String {
        let items = match schema.get("items") {
            Some(Value::Object(items)) if items.is_empty() => None,
            Some(Value::Null | Value::Bool(false)) | None => None,
            Some(items) => Some(items),
        };
        match items.map(|items| (items, items.get("type").and_then(Value::as_str))) {
            None => "any[]".into(),
            Some((_, Some("string"))) => "string[]".into(),
            Some((_, Some("number" | "integer"))) => "number[]".into(),
            Some((_, Some("boolean"))) => "boolean[]".into(),
            Some((items, _)) => match type_of(items) {
                inner if inner == "object | object" || inner.chars().count() > 50 => "any[]".into(),
                inner => inner + "[]",
            },
        }
    }

    fn union_of(variants: &[Value]) -> String {
        let mut out = String::new();
        for (i, variant) in variants.iter().enumerate() {
            if i > 0 {
                out += " | \n";
            }
            out += &type_of(variant);
            if let Some(description) = text(variant, "description") {
                out += &format!("// {description}");
            }
            if let Some(default) = variant.get("default") {
                out += &format!("{:20}// default: {}", "", python_json::to_string(default));
            }
        }
        out
    }

    fn object_of(schema: &Value) -> String {
        let Some(properties) = properties(schema) else { return "object".into() };
        let properties: Vec<String> = properties
            .iter()
            .map(|(name, p)| {
                format!("{name}{}: \n{:16}{}", optional_mark(schema, name), "", type_of(p))
            })
            .collect();
        format!("{{\n{}}}", properties.join(", "))
    }
}

/// The harmony library's form.
mod harmony {
    use super::*;

    pub(super) fn declaration(out: &mut String, tool: &Tool) {
        for line in tool.description.lines() {
            *out += &format!("// {line}\n");
        }
        *out += &match tool.parameters.as_ref().filter(|p| !p.is_null()) {
            Some(schema) => {
                format!("type {} = (_: {}) => any;\n\n", tool.name, type_of(schema, ""))
            }
            None => format!("type {} = () => any;\n\n", tool.name),
        };
    }

    fn type_of(schema: &Value, indent: &str) -> String {
        if let Some(variants) = schema.get("oneOf").and_then(Value::as_array) {
            return variants.iter().map(|v| format!("\n{}", variant(v, indent))).collect();
        }
        match schema.get("type") {
            Some(Value::Array(kinds)) => {
                let kinds: Vec<String> = kinds
                    .iter()
                    .map(plain)
                    .map(|kind| if kind == "integer" { "number".into() } else { kind })
                    .collect();
                kinds.join(" | ")
            }
            Some(Value::String(kind)) => match kind.as_str() {
                "object" => object_of(schema, indent),
                "array" => match schema.get("items") {
                    Some(items) => format!("{}[]", type_of(items, indent)),
                    None => "Array<any>".into(),
                },
                "string" => match list(schema, "enum") {
                    Some(names) => quoted_union(names),
                    None => "string".into(),
                },
                "number" | "integer" => "number".into(),
                "boolean" => "boolean".into(),
                _ => "any".into(),
            },
            _ => "any".into(),
        }
    }

    /// One line of a `oneOf`, without its line break.
    fn variant(schema: &Value, indent: &str) -> String {
        let kind = type_of(schema, &format!("{indent}   "));
        let or_null = if nullable(schema) && !kind.contains("null") { " | null" } else { "" };
        let mut comments: Vec<String> = schema.get("description").map(plain).into_iter().collect();
        comments.extend(default_of(schema).map(|d| format!("default: {d}")));
        let comment =
            if comments.is_empty() { String::new() } else { format!(" // {}", comments.join(" ")) };
        format!("{indent} | {kind}{or_null}{comment}")
    }

    /// The default as written in a comment: a string between quotes, though nothing in it is
    /// escaped, an enum's name without, anything else as JSON.
    fn default_of(schema: &Value) -> Option<String> {
        Some(match (schema.get("default")?, list(schema, "enum")) {
            (Value::String(name), Some(_)) => name.clone(),
            (Value::String(text), None) => format!("\"{text}\""),
            (other, _) => other.to_string(),
        })
    }

    fn object_of(schema: &Value, indent: &str) -> String {
        let mut out = String::new();
        if let Some(description) = schema.get("description").and_then(Value::as_str) {
            out += &format!("{indent}// {description}\n");
        }
        out += "{\n";
        for (name, property) in properties(schema).into_iter().flatten() {
            property_of(&mut out, schema, name, property, indent);
        }
        out + indent + "}"
    }

    fn property_of(out: &mut String, object: &Value, name: &str, property: &Value, indent: &str) {
        let variants = property.get("oneOf").and_then(Value::as_array);
        let description = property.get("description").and_then(Value::as_str);
        let mut comment = |line: &str| *out += &format!("{indent}// {line}\n");
        if let Some(title) = property.get("title").and_then(Value::as_str) {
            comment(&format!("{title}\n{indent}//"));
        }
        if variants.is_none() {
            description.iter().for_each(|d| comment(d));
        }
        if let Some(examples) = list(property, "examples") {
            comment("Examples:");
            examples.iter().filter(|e| e.is_string()).for_each(|e| comment(&format!("- {e}")));
        }
        if variants.is_some() {
            description.iter().for_each(|d| comment(d));
            default_of(property).iter().for_each(|d| comment(&format!("default: {d}")));
        }
        *out += &format!("{indent}{name}{}:", optional_mark(object, name));
        if let Some(variants) = variants {
            *out += "\n";
            variants.iter().for_each(|v| *out += &(variant(v, indent) + "\n"));
            *out += &format!("{indent},\n");
            return;
        }
        let kind = type_of(property, &format!("{indent}    "));
        let or_null = if nullable(property) && !kind.contains("null") { " | null" } else { "" };
        let default = default_of(property).map(|d| format!(" // default: {d}")).unwrap_or_default();
        *out += &format!(" {kind}{or_null},{default}\n");
    }
}
