//! The ratios to overlayfs as bars, on a logarithmic axis: left of the line is faster.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::{cells, ratio};
use crate::race::{Results, Row};
use crate::works::Target;

const WIDTH: u32 = 1000;
/// What a bar and what a row's frame take, in pixels.
const BAR: u32 = 12;
const FRAME: u32 = 14;

/// An SVG of all rows that have a ratio.
pub fn svg(results: &Results) -> Result<String> {
    let mut text = String::new();
    draw(results, &mut text).map_err(|error| anyhow!("cannot draw the plot: {error}"))?;
    Ok(text)
}

fn draw(results: &Results, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let systems = u32::try_from(results.systems.len())?;
    let drawn = results.rows.iter();
    let drawn = drawn.filter(|row| !matches!(row.target, Target::Absolute(_)));
    let drawn: Vec<_> = drawn.collect();
    let rows = u32::try_from(drawn.len())?;
    let row_height = systems * BAR + FRAME;
    let height = rows * row_height + 60 + systems * 18;
    let root = SVGBackend::with_string(text, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(
        "Time, as a multiple of overlayfs's (less is better)",
        ("sans-serif", 20),
    )?;
    for (number, (name, version)) in results.systems.iter().enumerate() {
        let top = i32::try_from(number)? * 18 + 4;
        let colour = Palette99::pick(number);
        root.draw(&Rectangle::new(
            [(10, top), (24, top + 12)],
            colour.filled(),
        ))?;
        root.draw(&Text::new(
            format!("{name}: {version}"),
            (32, top),
            ("sans-serif", 13),
        ))?;
    }
    for (number, row) in drawn.into_iter().enumerate() {
        let top = systems * 18 + 12 + u32::try_from(number)? * row_height;
        draw_row(results, row, &root, i32::try_from(top)?)?;
    }
    root.present()?;
    Ok(())
}

/// Where the bars begin and end.
const LEFT: f64 = 330.0;
const RIGHT: f64 = 930.0;

/// The place of a ratio: from 1/1000 to 100.
fn place(ratio: f64) -> i32 {
    let share = (ratio.clamp(1e-3, 1e2).log10() + 3.0) / 5.0;
    #[allow(clippy::cast_possible_truncation)]
    let place = (LEFT + share * (RIGHT - LEFT)).round() as i32;
    place
}

fn draw_row<B: DrawingBackend>(
    results: &Results,
    row: &Row,
    root: &DrawingArea<B, plotters::coord::Shift>,
    top: i32,
) -> Result<(), Box<dyn std::error::Error>>
where
    B::ErrorType: 'static,
{
    root.draw(&Text::new(row.title, (10, top), ("sans-serif", 13)))?;
    let bar = i32::try_from(BAR)?;
    let mut end = top;
    for (number, cell) in cells(results, row).into_iter().enumerate() {
        let y = top + i32::try_from(number)? * bar;
        end = y + bar;
        let Some(reached) = cell.and_then(|cell| cell.ratio) else {
            continue;
        };
        let corners = [(place(1e-3), y), (place(reached), y + bar - 2)];
        root.draw(&Rectangle::new(corners, Palette99::pick(number).filled()))?;
        root.draw(&Text::new(
            ratio(reached),
            (place(reached) + 4, y),
            ("sans-serif", 11),
        ))?;
    }
    let line = |at: i32, style: ShapeStyle| PathElement::new([(at, top - 2), (at, end)], style);
    root.draw(&line(place(1.0), BLACK.into()))?;
    if let Some(limit) = row.target.limit() {
        root.draw(&line(place(limit), RED.stroke_width(2)))?;
    }
    Ok(())
}
