//! What grew over time, as a plot: one line for each who was measured.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

const SIZE: (u32, u32) = (1000, 560);
/// What a line of the legend takes, in pixels.
const LEGEND: u32 = 18;

/// One line.
pub struct Curve {
    /// Whose it is.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
    /// A point of it that means something.
    pub mark: Option<(f64, f64)>,
}

/// What a plot of [`Curve`]s says beside them.
pub struct Titles<'a> {
    /// What it is about, and what a mark means.
    pub title: &'a str,
    /// What goes to the right.
    pub x: &'a str,
    /// What goes up.
    pub y: &'a str,
}

/// An SVG of these lines, from 0 to `end` on the x axis.
pub fn curves(titles: &Titles<'_>, end: f64, curves: &[Curve]) -> Result<String> {
    let mut text = String::new();
    draw(titles, end, curves, &mut text).map_err(|error| anyhow!("cannot draw: {error}"))?;
    Ok(text)
}

fn draw(
    titles: &Titles<'_>,
    end: f64,
    curves: &[Curve],
    text: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let legend = u32::try_from(curves.len())? * LEGEND + 10;
    let root = SVGBackend::with_string(text, (SIZE.0, SIZE.1 + legend)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(titles.title, ("sans-serif", 20))?;
    let (top, plot) = root.split_vertically(legend);
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let high = points().map(|point| point.1).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(&plot)
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end, 0.0..high * 1.05)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(titles.x)
        .y_desc(titles.y)
        .light_line_style(WHITE);
    mesh.draw()?;
    for (number, curve) in curves.iter().enumerate() {
        let colour = Palette99::pick(number);
        let mut points = curve.points.clone();
        points.retain(|point| point.0 <= end);
        if points.len() < curve.points.len() {
            points.extend(points.last().map(|last| (end, last.1)));
        }
        let line = PathElement::new(points, colour.stroke_width(2));
        chart.draw_series([line])?;
        let mark = curve.mark.filter(|mark| mark.0 <= end);
        chart.draw_series(mark.map(|mark| Circle::new(mark, 5, colour.filled())))?;
        let y = i32::try_from(u32::try_from(number)? * LEGEND)? + 8;
        top.draw(&Rectangle::new([(10, y), (24, y + 12)], colour.filled()))?;
        top.draw(&Text::new(curve.name.as_str(), (32, y), ("sans-serif", 13)))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_drawn_and_named_and_ends_at_the_edge() {
        let curve = |name: &str| Curve {
            name: name.to_owned(),
            points: vec![(0.0, 0.0), (1.0, 5.0), (9.0, 10.0)],
            mark: Some((1.0, 5.0)),
        };
        let titles = Titles {
            title: "bytes",
            x: "seconds",
            y: "MB",
        };
        let plot = |end| curves(&titles, end, &[curve("tortoise"), curve("hare")]).unwrap();
        let (whole, cut) = (plot(10.0), plot(0.5));
        for text in ["tortoise", "hare", "bytes", "seconds", "MB"] {
            assert!(whole.contains(text), "{text} is not in it");
        }
        assert_eq!(whole.matches("<circle").count(), 2);
        assert_eq!(cut.matches("<circle").count(), 0);
    }
}
