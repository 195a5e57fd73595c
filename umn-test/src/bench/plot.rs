// SPDX-License-Identifier: GPL-2.0

//! The costs as a picture: each one against the number of regions, on logarithmic axes.

use plotters::prelude::*;

use super::figures::{
    Figures,
    Operation,
    Peer,
    REGIONS, //
};
use crate::expect::{
    Failure,
    Outcome, //
};

/// The operations, each with a diagram of its own.
const OPERATIONS: [(Operation, &str); 4] = [
    (Operation::Register, "register one more"),
    (Operation::Unregister, "unregister a random one"),
    (
        Operation::MissBetween,
        "madvise of a page between regions, added",
    ),
    (Operation::Hit, "munmap of a watched page, added"),
];

/// Size of the picture in pixels.
const SIZE: (u32, u32) = (1000, 760);

fn colour(peer: Peer) -> RGBColor {
    match peer {
        Peer::Ummunotify => RGBColor(0, 90, 180),
        Peer::Userfaultfd => RGBColor(0, 140, 70),
        Peer::V2 => RGBColor(190, 40, 40),
        Peer::Kdreg2 => RGBColor(200, 120, 0),
        Peer::Bare | Peer::Eventfd | Peer::Memhooks => RGBColor(110, 110, 110),
    }
}

/// Draws an SVG.
pub fn draw(figures: &Figures) -> Outcome<String> {
    let mut text = String::new();
    paint(figures, &mut text)
        .map_err(|error| Failure::Failed(format!("cannot draw the plot: {error}")))?;
    Ok(text)
}

fn paint(figures: &Figures, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(
        "Instructions, with N regions registered",
        ("sans-serif", 22),
    )?;
    for (area, (operation, title)) in root.split_evenly((2, 2)).iter().zip(OPERATIONS) {
        let most = REGIONS[REGIONS.len() - 1] as f64;
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(35)
            .y_label_area_size(70)
            .build_cartesian_2d((1.0..most).log_scale().base(2.0), (100.0..1e8).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("N")
            .x_label_formatter(&|regions| format!("{regions:.0}"))
            .y_label_formatter(&|count| format!("{count:.0}"))
            .draw()?;
        for peer in Peer::ALL {
            let costs = figures.of(operation, peer);
            // A single result shows no growth.
            if costs.len() < 2 {
                continue;
            }
            let colour = colour(peer);
            let points: Vec<_> = costs.iter().map(|cost| (cost.0 as f64, cost.1)).collect();
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?
                .label(peer.text())
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .draw()?;
    }
    root.present()?;
    Ok(())
}
