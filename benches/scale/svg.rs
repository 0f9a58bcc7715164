//! Draws lines over logarithmic axes, side by side.

use std::fmt::Write as _;

/// One diagram; all share a scale of values.
pub(crate) struct Panel {
    /// The label of the horizontal axis.
    pub(crate) axis: String,
    pub(crate) lines: Vec<Line>,
}

pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) colour: &'static str,
    pub(crate) points: Vec<(usize, f64)>,
}

const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 50.0;
const GAP: f64 = 90.0;

pub(crate) fn draw(title: &str, panels: &[Panel]) -> String {
    let width = LEFT + panels.len() as f64 * (WIDTH + GAP);
    let height = TOP + HEIGHT + 60.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"14\">{title}</text>\n"
    );
    let values = || {
        panels
            .iter()
            .flat_map(|panel| &panel.lines)
            .flat_map(|line| &line.points)
            .map(|(_, value)| value.log10())
    };
    let bottom = values().fold(f64::INFINITY, f64::min).floor();
    let top = values().fold(f64::NEG_INFINITY, f64::max).ceil();
    for (n, panel) in panels.iter().enumerate() {
        let left = LEFT + n as f64 * (WIDTH + GAP);
        draw_panel(&mut svg, panel, left, (bottom, top));
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_panel(svg: &mut String, panel: &Panel, left: f64, (bottom, top): (f64, f64)) {
    let counts = || {
        panel
            .lines
            .iter()
            .flat_map(|line| &line.points)
            .map(|(count, _)| (*count as f64).log10())
    };
    let first = counts().fold(f64::INFINITY, f64::min);
    let last = counts().fold(f64::NEG_INFINITY, f64::max);
    let x = |power: f64| left + WIDTH * (power - first) / (last - first).max(1.0);
    let y = |power: f64| TOP + HEIGHT * (1.0 - (power - bottom) / (top - bottom).max(1.0));
    let end = TOP + HEIGHT;
    for power in powers(bottom, top) {
        let (at, label) = (y(power), power_of_ten(power));
        let _ = writeln!(
            svg,
            "<line x1=\"{left}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            left + WIDTH,
            left - 6.0,
            at + 4.0
        );
    }
    for power in powers(first, last) {
        let (at, label) = (x(power), power_of_ten(power));
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{end:.1}\" stroke=\"#eee\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
            end + 18.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        left + WIDTH / 2.0,
        end + 40.0,
        panel.axis
    );
    for Line {
        name,
        colour,
        points,
    } in &panel.lines
    {
        let places: Vec<(f64, f64)> = points
            .iter()
            .map(|(count, value)| (x((*count as f64).log10()), y(value.log10())))
            .collect();
        let path: Vec<String> = places
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for (x, y) in &places {
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
            );
        }
        // At the end, where the lines are farthest apart.
        if let Some((x, y)) = places.last() {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{colour}\">{name}</text>",
                x - 8.0,
                y - 10.0
            );
        }
    }
}

/// Returns the integers from `from` to `to`.
fn powers(from: f64, to: f64) -> impl Iterator<Item = f64> {
    let steps = (to - from).round().max(0.0) as usize;
    (0..=steps).map(move |step| from + step as f64)
}

fn power_of_ten(power: f64) -> String {
    if power < 0.0 {
        format!("{:.*}", -power as usize, 10_f64.powf(power))
    } else {
        crate::support::targets::thousands(10_f64.powf(power).round() as usize)
    }
}
