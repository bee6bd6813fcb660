//! The loss of every step as a picture.

use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use std::error::Error;
use std::path::Path;

/// Steps averaged for the darker line.
const WINDOW: usize = 50;

/// Draws `losses` to the PNG `path`, on a logarithmic axis; the step `quantised_from` is
/// marked.
pub fn draw(losses: &[f64], quantised_from: usize, path: &Path) -> Result<(), Box<dyn Error>> {
    register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| "the font is invalid")?;
    let finite = losses.iter().copied().filter(|loss| *loss > 0.0);
    let low = finite.clone().fold(f64::MAX, f64::min).min(1.0);
    let high = finite.fold(1.0, f64::max);
    let area = BitMapBackend::new(path, (900, 500)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("loss per predicted token", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0..losses.len().max(1), (low..high).log_scale())?;
    chart.configure_mesh().x_desc("step").y_desc("nats").draw()?;
    let points = |values: Vec<f64>| values.into_iter().map(|v| v.max(1e-9)).enumerate();
    chart.draw_series(LineSeries::new(points(losses.to_vec()), &BLUE.mix(0.25)))?;
    let mean = |end: usize| {
        let window = &losses[end.saturating_sub(WINDOW)..end];
        window.iter().sum::<f64>() / window.len() as f64
    };
    let means = (1..=losses.len()).map(mean).collect();
    chart
        .draw_series(LineSeries::new(points(means), &BLUE))?
        .label(format!("mean of {WINDOW} steps"))
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLUE));
    let from = quantised_from.min(losses.len());
    chart
        .draw_series(LineSeries::new([(from, low), (from, high)], &RED))?
        .label("experts in MXFP4 from here")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], RED));
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}
