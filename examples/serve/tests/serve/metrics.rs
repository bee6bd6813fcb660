//! `/metrics`.

use crate::server::{CHAT, question, server};
use std::collections::{BTreeMap, BTreeSet};

/// The samples of Prometheus' text format, which is checked on the way.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            assert!(helped.insert(help.split_once(' ').expect("a text").0), "{line}");
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(types.insert(name, kind).is_none(), "{line}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let name = series.split('{').next().unwrap();
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        assert!(name.chars().all(is_name), "{line}");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let family =
            family.filter(|family| types.get(family) == Some(&"histogram")).unwrap_or(name);
        let kind = types.get(family).unwrap_or_else(|| panic!("no type: {line}"));
        assert_eq!(*kind == "counter", name.ends_with("_total"), "{line}");
        if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
            let labels =
                labels.strip_prefix('{').and_then(|l| l.strip_suffix('}')).expect("labels");
            for label in labels.split(',') {
                let (_, value) = label.split_once('=').expect("a label");
                assert!(
                    value.len() >= 2 && value.starts_with('"') && value.ends_with('"'),
                    "{line}"
                );
            }
        }
        let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
    }
    assert_eq!(helped, types.keys().copied().collect());
    samples
}

#[tokio::test]
async fn what_was_done_can_be_watched() {
    let server = server();
    let answer = server.ask(CHAT, question()).await;
    server.get("/v1/nothing").await;
    server.get("/v1/models/a-name-of-theirs").await;
    server.until("it is counted", |stats| stats.finished == 1).await;
    let reply = server.get("/metrics").await;
    assert!(
        reply.headers["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4")
    );
    let samples = samples(&reply.text);
    let of = |name: &str| {
        let name = format!("gpt_oss_puzzle:{name}");
        *samples.get(&name).unwrap_or_else(|| panic!("no {name} in {samples:?}"))
    };
    let usage = |name: &str| answer["usage"][name].as_f64().unwrap();
    assert_eq!(of("requests_total{outcome=\"finished\"}"), 1.0);
    assert_eq!(of("prompt_tokens_total"), usage("prompt_tokens"));
    assert_eq!(of("generation_tokens_total"), usage("completion_tokens"));
    assert_eq!(of("http_requests_total{path=\"/v1/chat/completions\",status=\"200\"}"), 1.0);
    // Paths of clients' own making are no labels: there would be no end of them.
    assert_eq!(of("http_requests_total{path=\"other\",status=\"404\"}"), 1.0);
    assert!(!reply.text.contains("a-name-of-theirs"));
    assert_eq!(of("time_to_first_token_seconds_count"), 1.0);
    assert_eq!(of("time_to_first_token_seconds_bucket{le=\"+Inf\"}"), 1.0);
    assert_eq!(of("inter_token_latency_seconds_count"), usage("completion_tokens") - 1.0);
    assert!(of("steps_total") > 1.0);
    assert!(of("kv_cache_pages{state=\"free\"}") > 0.0);
    for name in ["num_requests_running", "num_requests_waiting", "kv_cache_pages{state=\"used\"}"] {
        assert_eq!(of(name), 0.0, "{name}");
    }
    let buckets: Vec<f64> = samples
        .iter()
        .filter(|(name, _)| name.starts_with("gpt_oss_puzzle:time_to_first_token_seconds_bucket"))
        .map(|(_, count)| *count)
        .collect();
    assert!(buckets.len() > 20 && buckets.iter().all(|count| [0.0, 1.0].contains(count)));
}
