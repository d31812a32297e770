//! The picture: plain SVG, three graphs over one time.

use crate::Plan;
use crate::run::{SLICE, Slice, Story};
use std::fmt::Write;
use std::time::Duration;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 92.0;
/// How far above the first graph things that happened are marked.
const ABOVE: f64 = 50.0;
/// Of one graph, and between two.
const HEIGHT: f64 = 110.0;
const GAP: f64 = 46.0;

const STYLE: &str = "\
text { font: 12px system-ui, sans-serif; fill: #24292f } \
.title { font-size: 15px; font-weight: 600 } .name { font-weight: 600 } .minor { fill: #57606a } \
.paper { fill: #ffffff } .axis { stroke: #8c959f; fill: none } .grid { stroke: #d8dee4; fill: none } \
.outage { fill: #cf222e; fill-opacity: .10 } .mark { stroke: #57606a; stroke-dasharray: 2 3 } \
.hits { fill: #1a7f37; fill-opacity: .25; stroke: #1a7f37 } \
.stored { stroke: #0969da; fill: none } .loads { stroke: #bc4c00; fill: none } \
.stale { fill: #8250df; fill-opacity: .20; stroke: #8250df } \
.bound { stroke: #cf222e; stroke-dasharray: 6 4; fill: none } \
text.stored { fill: #0969da; stroke: none } text.loads { fill: #bc4c00; stroke: none } \
text.bound { fill: #cf222e; stroke: none } \
@media (prefers-color-scheme: dark) { \
text { fill: #e6edf3 } .minor { fill: #9da7b1 } .paper { fill: #0d1117 } .grid { stroke: #262c36 } \
.hits { fill: #3fb950; stroke: #3fb950 } .stored { stroke: #58a6ff } .loads { stroke: #f0883e } \
.stale { fill: #bc8cff; stroke: #bc8cff } .bound { stroke: #ff7b72 } .outage { fill: #ff7b72 } \
.mark { stroke: #9da7b1 } text.stored { fill: #58a6ff } text.loads { fill: #f0883e } \
text.bound { fill: #ff7b72 } }";

/// One graph: where it begins, and what its full height is worth.
struct Graph {
    top: f64,
    most: f64,
    seconds: f64,
}

impl Graph {
    fn x(&self, at: f64) -> f64 {
        LEFT + at / self.seconds * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        self.top + HEIGHT * (1.0 - value / self.most)
    }

    /// A line through one value for each slice.
    fn line(&self, slices: &[Slice], value: impl Fn(&Slice) -> f64) -> String {
        let middle = |n: usize| (n as f64 + 0.5) * SLICE.as_secs_f64();
        let point = |(n, slice)| format!("{:.1},{:.1}", self.x(middle(n)), self.y(value(slice)));
        let points: Vec<_> = slices.iter().enumerate().map(point).collect();
        points.join(" ")
    }

    /// The line, closed along the bottom.
    fn area(&self, slices: &[Slice], value: impl Fn(&Slice) -> f64) -> String {
        let half = SLICE.as_secs_f64() / 2.0;
        let (first, last) = (self.x(half), self.x(self.seconds - half));
        let (bottom, line) = (self.y(0.0), self.line(slices, value));
        format!("{first:.1},{bottom:.1} {line} {last:.1},{bottom:.1}")
    }
}

fn per_second(count: u64) -> f64 {
    count as f64 / SLICE.as_secs_f64()
}

/// The next number above that is 1, 2 or 5 times a power of ten.
fn round_up(most: f64) -> f64 {
    let power = 10_f64.powf(most.max(1.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    steps.into_iter().find(|&step| step >= most).unwrap_or(most)
}

pub(crate) fn draw(plan: &Plan, story: &Story) -> String {
    let (seconds, slices) = (plan.end.as_secs_f64(), &story.slices);
    let most = |value: &dyn Fn(&Slice) -> f64| slices.iter().map(value).fold(0.0, f64::max);
    let hits = |slice: &Slice| per_second(slice.hits);
    let stored = |slice: &Slice| per_second(slice.stored);
    let loads = |slice: &Slice| per_second(slice.loads);
    let stale = |slice: &Slice| slice.staleness.as_secs_f64() * 1e3;
    let graph = |n: usize, most: f64| Graph {
        top: TOP + n as f64 * (HEIGHT + GAP),
        most,
        seconds,
    };
    let memory = graph(0, round_up(most(&hits)));
    let below = graph(1, round_up(most(&stored).max(most(&loads))));
    let lag = graph(2, 1.2e3);
    let height = lag.top + HEIGHT + 44.0;
    let worst = slices
        .iter()
        .map(|slice| slice.staleness)
        .max()
        .unwrap_or_default();

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-labelledby=\"title desc\">\n<title id=\"title\">Redis is killed and comes back</title>\n\
         <desc id=\"desc\">Three graphs over {seconds} seconds of three pods. Redis is dead from second \
         {:.1} to second {:.1}. Reads answered from memory go on; loads from the source rise during the \
         outage and fall again after it. What readers are given had been replaced in the source for {} ms at \
         worst; the bound is {} ms throughout.</desc>\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\n",
        plan.kill.as_secs_f64(),
        plan.restart.as_secs_f64(),
        worst.as_millis(),
        story.bound.as_millis(),
    );
    let out = &mut svg;
    text(
        out,
        LEFT,
        24.0,
        "title",
        "Redis is killed and comes back: three pods, one run",
    );
    shade(out, &memory, plan, lag.top + HEIGHT);
    frame(out, &memory, "reads per second answered from memory");
    polygon(out, "hits", &memory.area(slices, hits));
    frame(
        out,
        &below,
        "reads per second answered by the store, and loads from the source",
    );
    polyline(out, "stored", &below.line(slices, stored));
    polyline(out, "loads", &below.line(slices, loads));
    text(
        out,
        WIDTH - RIGHT - 150.0,
        below.top - 8.0,
        "stored",
        "by the store",
    );
    text(out, WIDTH - RIGHT - 66.0, below.top - 8.0, "loads", "loads");
    frame(
        out,
        &lag,
        "the stalest read: how long its value had been replaced in the source, in ms",
    );
    polygon(out, "stale", &lag.area(slices, stale));
    let bound = lag.y(story.bound.as_secs_f64() * 1e3);
    let end = WIDTH - RIGHT;
    polyline(out, "bound", &format!("{LEFT},{bound:.1} {end},{bound:.1}"));
    let label = format!("Δ = {} ms", story.bound.as_millis());
    text(out, end - 84.0, bound - 5.0, "bound", &label);
    mark(out, &memory, lag.top + HEIGHT, story.lapsed, "lanes lapsed");
    mark(
        out,
        &memory,
        lag.top + HEIGHT,
        story.healed,
        "all pods healed",
    );
    for second in 0..=seconds as u32 {
        let (x, y) = (lag.x(second.into()), lag.top + HEIGHT + 16.0);
        text(out, x - 4.0, y, "minor", &second.to_string());
    }
    text(out, LEFT, lag.top + HEIGHT + 34.0, "minor", "seconds");
    svg + "</svg>\n"
}

/// The time that Redis is dead.
fn shade(out: &mut String, graph: &Graph, plan: &Plan, bottom: f64) {
    let (from, to) = (
        graph.x(plan.kill.as_secs_f64()),
        graph.x(plan.restart.as_secs_f64()),
    );
    let (y, width, height) = (graph.top - ABOVE, to - from, bottom - graph.top + ABOVE);
    let _ = writeln!(
        out,
        "<rect class=\"outage\" x=\"{from:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{height}\"/>"
    );
    text(out, from + 4.0, y + 11.0, "bound", "Redis is dead");
}

/// When something happened.
fn mark(out: &mut String, graph: &Graph, bottom: f64, at: Option<Duration>, what: &str) {
    let Some(at) = at else {
        return;
    };
    let (x, top) = (graph.x(at.as_secs_f64()), graph.top - ABOVE);
    let _ = writeln!(
        out,
        "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>"
    );
    text(out, x + 4.0, top + 26.0, "minor", what);
}

fn frame(out: &mut String, graph: &Graph, name: &str) {
    text(out, LEFT, graph.top - 8.0, "name", name);
    let end = WIDTH - RIGHT;
    for part in [0.0, 0.5, 1.0] {
        let (value, y) = (graph.most * part, graph.y(graph.most * part));
        let class = if part == 0.0 { "axis" } else { "grid" };
        polyline(out, class, &format!("{LEFT},{y:.1} {end},{y:.1}"));
        text(out, 12.0, y + 4.0, "minor", &format!("{value:.0}"));
    }
}

fn text(out: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let _ = writeln!(
        out,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"
    );
}

fn polyline(out: &mut String, class: &str, points: &str) {
    let _ = writeln!(out, "<polyline class=\"{class}\" points=\"{points}\"/>");
}

fn polygon(out: &mut String, class: &str, points: &str) {
    let _ = writeln!(out, "<polygon class=\"{class}\" points=\"{points}\"/>");
}
