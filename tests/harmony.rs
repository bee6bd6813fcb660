//! Rendering, against what the reference implementations render.

use gpt_oss_puzzle::harmony::openai::{Request, StringArguments};
use gpt_oss_puzzle::harmony::{Dialect, Renderer, Template};
use serde_json::Value;

/// The cases rendered by the released checkpoints' template under jinja2.
fn cases() -> Vec<Value> {
    serde_json::from_str(include_str!("data/harmony-render-cases.json")).expect("valid cases")
}

fn render(renderer: &Renderer, case: &Value) -> gpt_oss_puzzle::Result<String> {
    renderer
        .render_text(&Request::from_json(&case["request"], StringArguments::Verbatim)?.as_render())
}

#[test]
fn every_case_is_byte_equal_in_both_renderers() {
    let mut renderers = vec![
        ("embedded", Renderer::from(Template::embedded().expect("compiles"))),
        ("native", Renderer::Native(Dialect::template())),
    ];
    if let Ok(path) = std::env::var("CHAT_TEMPLATE") {
        let source = std::fs::read_to_string(path).expect("readable");
        renderers.push(("given", Renderer::from(Template::new(source).expect("compiles"))));
    }
    for (which, renderer) in renderers {
        let mut compared = 0;
        for case in cases() {
            if let Some(expected) = case["text"].as_str() {
                let text = render(&renderer, &case)
                    .unwrap_or_else(|e| panic!("{which} {}: {e}", case["name"]));
                assert_eq!(text, expected, "{which} {}", case["name"]);
                compared += 1;
            }
        }
        assert_eq!(compared, 27, "{which}");
    }
}
#[test]
fn dbg_errors() {
    for (which, renderer) in [
        ("embedded", Renderer::from(Template::embedded().expect("compiles"))),
        ("native", Renderer::Native(Dialect::template())),
    ] {
        for case in cases() {
            if let Some(e) = case["reference_error"].as_str() {
                println!("{which} {} [{e}]: {:?}", case["name"], render(&renderer, &case));
            }
        }
    }
}
