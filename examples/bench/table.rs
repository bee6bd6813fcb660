//! The result as a table.

use serde_json::{Value, json};
use std::io::Write;

/// A row for each test, and what all of them have in common.
pub(crate) fn print(report: &Value, out: &mut impl Write) -> std::io::Result<()> {
    let number = |value: &Value, divisor: f64, digits: usize| match value.as_f64() {
        Some(value) => format!("{:.digits$}", value / divisor),
        None => "-".into(),
    };
    writeln!(out, "| model | layers | weights GB | kernels | test | tokens/s | GB/s |")?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for test in report["tests"].as_array().into_iter().flatten() {
        let rate = match test["skipped"].as_str() {
            Some(reason) => format!("skipped: {reason}"),
            None => format!(
                "{} ± {}",
                number(&test["tokens_per_second"], 1.0, 2),
                number(&test["deviation"], 1.0, 2)
            ),
        };
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {rate} | {} |",
            report["model_type"].as_str().unwrap_or_default(),
            report["layers"],
            number(&report["weight_bytes"], 1e9, 2),
            report["kernels"].as_str().unwrap_or_default(),
            test["test"].as_str().unwrap_or_default(),
            number(&test["gigabytes_per_second"], 1.0, 2),
        )?;
    }
    let tests = || report["tests"].as_array().into_iter().flatten();
    if tests().any(|test| test["engine"].is_object()) {
        let columns =
            "tokens/s | of bare steps | steps | ms a step in the model | us outside | share";
        writeln!(out, "\n| through the engine | {columns} |\n|---|---|---|---|---|---|---|")?;
        for (test, engine) in
            tests().map(|test| (test, &test["engine"])).filter(|t| t.1.is_object())
        {
            writeln!(
                out,
                "| {} | {} ± {} | {} % | {} | {} | {} | {} % |",
                test["test"].as_str().unwrap_or_default(),
                number(&engine["tokens_per_second"], 1.0, 2),
                number(&engine["deviation"], 1.0, 2),
                number(&engine["of_bare_steps"], 0.01, 1),
                engine["steps"],
                number(&engine["model_seconds_per_step"], 1e-3, 3),
                number(&engine["other_seconds_per_step"], 1e-6, 0),
                number(&engine["other_share"], 0.01, 1),
            )?;
        }
    }
    if let Some(rate) = report["copy_bytes_per_second"].as_f64() {
        writeln!(out, "\nthe device copies {:.1} GB/s (read and written)", rate / 1e9)?;
    }
    writeln!(
        out,
        "\nload {} s, peak memory {} GB (weights and cache {} GB)",
        number(&report["load_seconds"], 1.0, 2),
        number(&report["peak_memory_bytes"], 1e9, 3),
        number(
            &json!(
                report["weight_bytes"].as_f64().unwrap_or_default()
                    + report["cache_bytes"].as_f64().unwrap_or_default()
            ),
            1e9,
            3
        ),
    )
}
