//! Line charts as self-contained SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

pub use plotters::prelude::SeriesLabelPosition;

/// Colours that colour-blind readers can distinguish (Okabe and Ito).
const COLOURS: [RGBColor; 5] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
];

const SIZE: (u32, u32) = (800, 420);

/// A line chart.
#[derive(Debug, Clone)]
pub struct Chart<'a> {
    /// The title above it.
    pub title: &'a str,
    /// Label of the horizontal axis, which starts at 0.
    pub across: &'a str,
    /// Label of the vertical axis, which starts at 0.
    pub up: &'a str,
    /// Position of the legend.
    pub legend: SeriesLabelPosition,
    /// The lines.
    pub lines: Vec<Line>,
}

/// A line and its name.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

impl Chart<'_> {
    /// The picture.
    ///
    /// # Errors
    ///
    /// When the drawing library fails.
    pub fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        self.draw(SVGBackend::with_string(&mut svg, SIZE))
            .map_err(|error| anyhow!("draw \"{}\": {error}", self.title))?;
        Ok(svg)
    }

    fn draw(&self, backend: SVGBackend<'_>) -> Result<(), Box<dyn std::error::Error + '_>> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        // An empty chart has axes, too.
        let right = points().fold(f64::MIN_POSITIVE, |most, (x, _)| most.max(*x));
        let top = points().fold(f64::MIN_POSITIVE, |most, (_, y)| most.max(*y)) * 1.05;
        let area = backend.into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..right, 0.0..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc(self.across)
            .y_desc(self.up)
            .draw()?;
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let series = LineSeries::new(line.points.iter().copied(), colour.stroke_width(2));
            chart
                .draw_series(series)?
                .label(&line.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(self.legend.clone())
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(lines: Vec<Line>) -> String {
        let chart = Chart {
            title: "Requests & time",
            across: "seconds",
            up: "requests",
            legend: SeriesLabelPosition::UpperLeft,
            lines,
        };
        chart.svg().unwrap()
    }

    #[test]
    fn each_line_has_its_name_and_its_colour() {
        let line = |name: &str, height| Line {
            name: name.to_owned(),
            points: vec![(0.0, 0.0), (10.0, height)],
        };
        let svg = chart(vec![line("one", 5.0), line("two", 50.0)]);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for part in [
            "one",
            "two",
            "#0072B2",
            "#D55E00",
            "seconds",
            "Requests &amp; time",
        ] {
            assert!(svg.contains(part), "{part} is missing");
        }
        assert!(!svg.contains("href"), "it needs another file");
    }

    #[test]
    fn a_chart_without_points_is_empty() {
        assert!(chart(Vec::new()).contains("seconds"));
    }
}
