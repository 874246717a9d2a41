//! Plots as SVG: the percentiles of each scenario's latency and, separately, of what its act measured, with a line
//! per server; and the cost of a token as the load grows, with a line per number of streams.
//!
//! The plots compute logarithms themselves, so that every axis is linear with marks of its own.

use std::error::Error;
use std::ops::Range;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::cores::Cores;
use crate::growth::{Cost, Growth};
use crate::report::Report;
use crate::run::{Latency, Run};
use crate::scenarios::{self, Scenario};
use crate::series::Sample;
use crate::server::Server;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const SIZE: (u32, u32) = (960, 480);
/// The height of each chart of a file with several.
const PANEL_HEIGHT: u32 = 300;
const LEGEND_WIDTH: u32 = 270;
const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
const GRID: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);
/// Colours that colour-blind readers can distinguish too (Okabe and Ito).
const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);
const VERMILION: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
const PURPLE: RGBColor = RGBColor(0xcc, 0x79, 0xa7);
const ORANGE: RGBColor = RGBColor(0xe6, 0x9f, 0x00);
const SKY: RGBColor = RGBColor(0x56, 0xb4, 0xe9);
const GREY: RGBColor = RGBColor(0x88, 0x88, 0x88);

/// A percentile is plotted at the number of its nines, so that each further nine takes the same space.
const PERCENTILES: [(f64, &str); 6] =
    [(0.301, "p50"), (1.0, "p90"), (2.0, "p99"), (3.0, "p99.9"), (4.0, "p99.99"), (MAXIMUM, "max")];
/// The place of the maximum.
const MAXIMUM: f64 = 4.6;

/// An axis with marks of its own.
struct Axis {
    title: &'static str,
    range: Range<f64>,
    /// The positions and labels of the marks.
    marks: Vec<(f64, String)>,
}

/// A part of a file, in pixels.
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stroke {
    Thick,
    Thin,
    Dashed,
}

struct Curve {
    name: String,
    /// A second line of the legend.
    note: String,
    color: RGBColor,
    stroke: Stroke,
    points: Vec<(f64, f64)>,
}

/// The folder of the plots of runs with cores half taken, in the directory of all plots.
pub(crate) const HALF_TAKEN: &str = "half-taken";

/// Draws everything in a report, into a directory. Returns the files.
pub(crate) fn all(report: &Report, dir: &Path) -> Result<Vec<PathBuf>> {
    let dir = match report.cores() {
        Cores::Quiet => dir.to_owned(),
        Cores::HalfTaken => dir.join(HALF_TAKEN),
    };
    std::fs::create_dir_all(&dir)?;
    let mut files = Vec::new();
    for scenario in scenarios::ALL {
        files.extend(times(report, scenario, &dir)?);
        files.extend(series(report, scenario, &dir)?);
    }
    for (cost, file, title) in [
        (Cost::Server, "growth-server.svg", "growth: processor time of the server per token"),
        (Cost::Redis, "growth-redis.svg", "growth: processor time of Redis per token"),
    ] {
        let curves = costs(report.growth(), cost);
        if !curves.is_empty() {
            let path = dir.join(file);
            draw(&path, title, (rates(&curves), linear("µs per token", &curves)), &curves)?;
            files.push(path);
        }
    }
    Ok(files)
}

/// Draws the latency of a scenario that ran and, separately, what its act measured.
fn times(report: &Report, scenario: &Scenario, dir: &Path) -> Result<Vec<PathBuf>> {
    let name = scenario.name;
    let curve = |server: Server, of| curve(&report.of(name, server.name()), server, of);
    let curves = |of| Server::ALL.into_iter().filter_map(|server| curve(server, of)).collect::<Vec<_>>();
    let title = format!("{name}: {} ({})", scenario.what, report.cores().name());
    let mut latencies = curves(|run| run.latency_ms.as_ref());
    let alone = curve(Server::Daemon, |run| run.alone_ms.as_ref());
    latencies.extend(alone.map(|alone| Curve {
        name: format!("{}, alone", alone.name),
        stroke: Stroke::Dashed,
        ..alone
    }));
    let axes = ("percentile of the tokens", "ms from write to read");
    let mut files = draw_percentiles(dir.join(format!("{name}.svg")), &title, axes, &latencies)?;
    let Some(times) = scenario.times() else { return Ok(files) };
    let axes = ("percentile of the clients", times);
    let acts = curves(|run| run.act_ms.as_ref());
    files.extend(draw_percentiles(dir.join(format!("{name}-act.svg")), &title, axes, &acts)?);
    Ok(files)
}

/// Draws the memory, the descriptors and the tail of a long run over time, or over the streams that have passed.
fn series(report: &Report, scenario: &Scenario, dir: &Path) -> Result<Option<PathBuf>> {
    let runs = report.of(scenario.name, Server::Daemon.name());
    let Some(samples) = runs.first().map(|run| &run.samples).filter(|samples| samples.len() > 1) else {
        return Ok(None);
    };
    let passes = samples.iter().any(|sample| sample.streams_passed > 0);
    let place = |sample: &Sample| match passes {
        true => sample.streams_passed as f64,
        false => sample.seconds / 60.0,
    };
    let x = || {
        let title = if passes { "streams that have passed" } else { "minutes" };
        let end = samples.iter().map(place).fold(1e-3, f64::max);
        Axis { range: 0.0..end, ..linear_to(title, end) }
    };
    let curve = |name: &str, color, of: fn(&Sample) -> Option<f64>| Curve {
        name: name.into(),
        note: String::new(),
        color,
        stroke: Stroke::Thick,
        points: samples.iter().filter_map(|sample| Some((place(sample), of(sample)?))).collect(),
    };
    const MIB: f64 = 1024.0 * 1024.0;
    let memory = [
        curve("resident", BLUE, |sample| Some(sample.resident_bytes as f64 / MIB)),
        curve("private", GREEN, |sample| Some(sample.private_bytes as f64 / MIB)),
    ];
    let open = [curve("open descriptors", BLUE, Sample::open)];
    let log = |value: f64| value.max(1e-3).log10();
    let tail = [
        curve("max", GREY, |sample| sample.latency_ms.as_ref().map(|ms| ms.max)),
        curve("p99.9", VERMILION, Sample::p99_9),
        curve("p99", BLUE, |sample| sample.latency_ms.as_ref().map(|ms| ms.p99)),
    ]
    .map(|curve| Curve { points: curve.points.iter().map(|&(x, y)| (x, log(y))).collect(), ..curve });
    let path = dir.join(format!("{}-time.svg", scenario.name));
    let title = format!("{}: {} ({})", scenario.name, scenario.what, report.cores().name());
    let panels = vec![
        ((x(), linear("MiB of the daemon", &memory)), &memory[..]),
        ((x(), linear("descriptors", &open)), &open[..]),
        ((x(), logarithmic("ms from write to read", &tail)), &tail[..]),
    ];
    draw_panels(&path, &title, panels)?;
    Ok(Some(path))
}

/// Draws curves over the percentiles, if there are any. Returns the file.
fn draw_percentiles(
    path: PathBuf,
    title: &str,
    (x, y): (&'static str, &'static str),
    curves: &[Curve],
) -> Result<Vec<PathBuf>> {
    if curves.is_empty() {
        return Ok(Vec::new());
    }
    let marks = PERCENTILES.map(|(nines, name)| (nines, name.to_owned())).to_vec();
    let x = Axis { title: x, range: PERCENTILES[0].0..MAXIMUM, marks };
    draw(&path, title, (x, logarithmic(y, curves)), curves)?;
    Ok(vec![path])
}

/// The percentiles of a time, over all rounds.
fn curve(runs: &[&Run], server: Server, of: fn(&Run) -> Option<&Latency>) -> Option<Curve> {
    let mut histograms = runs.iter().filter_map(|run| of(run)).map(|times| &times.us);
    let mut all = histograms.next()?.clone();
    for more in histograms {
        all += more;
    }
    let behind = runs.iter().any(|run| run.behind);
    let name = format!("{}{}", server.name(), if behind { " (falling behind)" } else { "" });
    let (color, stroke) = match server {
        Server::Daemon => (BLUE, Stroke::Thick),
        Server::Blocking => (GREY, Stroke::Dashed),
        Server::Tracking => (GREY, Stroke::Thin),
        Server::Bare => (ORANGE, Stroke::Dashed),
        Server::Node => (GREEN, Stroke::Thin),
        Server::Fastapi => (VERMILION, Stroke::Thin),
        Server::Nchan => (PURPLE, Stroke::Thin),
        Server::Centrifugo => (SKY, Stroke::Thin),
        Server::CentrifugoStreams => (SKY, Stroke::Dashed),
        Server::Nats => (ORANGE, Stroke::Thin),
    };
    let points = percentiles(&all);
    let ms = Latency::of(&all)?;
    let note = format!("p99 {}, p99.9 {}, max {} ms", short(ms.p99), short(ms.p99_9), short(ms.max));
    (points.len() > 1).then_some(Curve { name, note, color, stroke, points })
}

/// A number with three digits, or all before the point.
fn short(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => grouped(value.round()),
    }
}

/// The logarithm of the latency in ms by nines, up to the last percentile that this many tokens determine, and then
/// that of the maximum.
fn percentiles(us: &Histogram<u64>) -> Vec<(f64, f64)> {
    if us.len() < 10 {
        return Vec::new();
    }
    let log_ms = |us: u64| (us.max(1) as f64 / 1e3).log10();
    let (from, to) = (PERCENTILES[0].0, 4_f64.min((us.len() as f64).log10()));
    let steps = 160;
    let mut points: Vec<_> = (0..=steps)
        .map(|step| from + (to - from) * f64::from(step) / f64::from(steps))
        .map(|nines| (nines, log_ms(us.value_at_quantile(1.0 - 10_f64.powf(-nines)))))
        .collect();
    points.push((MAXIMUM, log_ms(us.max())));
    points
}

fn costs(growth: &Growth, cost: Cost) -> Vec<Curve> {
    let lines = growth.lines(cost);
    let mut streams: Vec<_> = lines.iter().map(|line| line.streams).collect();
    streams.sort_unstable();
    streams.dedup();
    let curve = |line: crate::growth::Line| {
        let place = streams.iter().position(|&streams| streams == line.streams).unwrap_or(0);
        Curve {
            name: format!("{}, {} streams", line.server.name(), grouped(f64::from(line.streams))),
            note: String::new(),
            color: [ORANGE, GREEN, BLUE][place % 3],
            stroke: if line.server == Server::Daemon { Stroke::Thick } else { Stroke::Dashed },
            points: line.points.iter().map(|&(rate, us)| (f64::from(rate).log10(), us)).collect(),
        }
    };
    lines.into_iter().map(curve).filter(|curve| curve.points.len() > 1).collect()
}

/// An axis of tokens a second, with a mark for each measured rate.
fn rates(curves: &[Curve]) -> Axis {
    let longest = curves.iter().max_by_key(|curve| curve.points.len());
    let at: Vec<_> = longest.iter().flat_map(|curve| &curve.points).map(|(x, _)| *x).collect();
    let (from, to) = (at.first().copied().unwrap_or(0.0), at.last().copied().unwrap_or(1.0));
    let marks = at.into_iter().map(|x| (x, grouped(10_f64.powf(x).round()))).collect();
    Axis { title: "tokens a second, over all streams", range: from..to, marks }
}

/// A linear axis from 0, in round steps.
fn linear(title: &'static str, curves: &[Curve]) -> Axis {
    linear_to(title, values(curves).fold(1e-3, f64::max))
}

/// A linear axis from 0 to a maximum or a little more, in round steps.
fn linear_to(title: &'static str, max: f64) -> Axis {
    let step = round_numbers(-3..6).find(|step| max / step <= 6.0).unwrap_or(max);
    let marks: Vec<_> = (0..=7).map(|n| f64::from(n) * step).map(|value| (value, grouped(value))).collect();
    let range = 0.0..(max / step).ceil() * step;
    Axis { title, range, marks }
}

/// A logarithmic axis, between round numbers.
fn logarithmic(title: &'static str, curves: &[Curve]) -> Axis {
    let (min, max) = (values(curves).fold(f64::MAX, f64::min), values(curves).fold(f64::MIN, f64::max));
    let from = round_numbers(-4..6).map(f64::log10).take_while(|mark| *mark < min).last().unwrap_or(min);
    let to = round_numbers(-4..6).map(f64::log10).find(|mark| *mark > max).unwrap_or(max);
    let marks = round_numbers(-4..6)
        .map(|value| (value.log10(), grouped(value)))
        .filter(|(mark, _)| (from..=to).contains(mark))
        .collect();
    Axis { title, range: from..to, marks }
}

fn values(curves: &[Curve]) -> impl Iterator<Item = f64> {
    curves.iter().flat_map(|curve| &curve.points).map(|(_, y)| *y)
}

/// 1, 2 and 5 times each power of ten.
fn round_numbers(powers: Range<i32>) -> impl Iterator<Item = f64> {
    powers.flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)))
}

/// Formats a number without its last digits, which are rounding errors of tenths, and with grouped thousands.
fn grouped(value: f64) -> String {
    let value = (value * 1e6).round() / 1e6;
    match value {
        1e3..1e6 => format!("{:.0},{:03.0}", (value / 1e3).floor(), value % 1e3),
        _ => format!("{value}"),
    }
}

fn draw(path: &Path, title: &str, axes: (Axis, Axis), curves: &[Curve]) -> Result<()> {
    draw_panels(path, title, vec![(axes, curves)])
}

/// A chart of several in one file: its axes and curves.
type Panel<'a> = ((Axis, Axis), &'a [Curve]);

/// Draws charts, one below the other.
fn draw_panels(path: &Path, title: &str, panels: Vec<Panel<'_>>) -> Result<()> {
    let height = if panels.len() == 1 { SIZE.1 } else { PANEL_HEIGHT * u32::try_from(panels.len())? };
    let root = SVGBackend::new(path, (SIZE.0, height)).into_drawing_area();
    root.fill(&WHITE).map_err(boxed)?;
    let root = root.titled(title, ("sans-serif", 15).into_font().color(&INK)).map_err(boxed)?;
    for (area, (axes, curves)) in root.split_evenly((panels.len(), 1)).iter().zip(panels) {
        draw_panel(area, axes, curves)?;
    }
    root.present().map_err(boxed)
}

fn draw_panel(area: &Area<'_>, (x, y): (Axis, Axis), curves: &[Curve]) -> Result<()> {
    let (left, right) = area.split_horizontally(SIZE.0 - LEGEND_WIDTH);
    let (titles, marks) = ((x.title, y.title), (x.marks.len(), y.marks.len()));
    let mut chart = ChartBuilder::on(&left)
        .margin(12)
        .margin_right(24)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)
        .map_err(boxed)?;
    chart
        .configure_mesh()
        .max_light_lines(0)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 14).into_font().color(&INK))
        .x_labels(marks.0)
        .y_labels(marks.1)
        .x_desc(titles.0)
        .y_desc(titles.1)
        .draw()
        .map_err(boxed)?;
    // The first curve is drawn last, on top.
    for curve in curves.iter().rev() {
        let points = curve.points.iter().copied();
        match curve.stroke {
            Stroke::Dashed => chart.draw_series(DashedLineSeries::new(points, 7, 4, curve.style())),
            Stroke::Thick | Stroke::Thin => chart.draw_series(LineSeries::new(points, curve.style())),
        }
        .map_err(boxed)?;
        let marked = curve.points.iter().filter(|(x, _)| !curve.note.is_empty() && *x == MAXIMUM);
        let dots = marked.map(|&point| Circle::new(point, 4, curve.color.filled()));
        chart.draw_series(dots).map_err(boxed)?;
    }
    let mut y = 24;
    for curve in curves {
        legend(&right, y, curve)?;
        y += if curve.note.is_empty() { 24 } else { 40 };
    }
    Ok(())
}

/// A curve's line in the legend.
fn legend(area: &Area<'_>, y: i32, curve: &Curve) -> Result<()> {
    let from = 4;
    let pieces: &[(i32, i32)] =
        if curve.stroke == Stroke::Dashed { &[(0, 7), (11, 18), (22, 28)] } else { &[(0, 28)] };
    for (start, end) in pieces {
        let ends = [(from + start, y), (from + end, y)];
        area.draw(&PathElement::new(ends, curve.style())).map_err(boxed)?;
    }
    let text = ("sans-serif", 14).into_font().color(&INK);
    area.draw(&Text::new(curve.name.clone(), (from + 36, y - 8), text)).map_err(boxed)?;
    let text = ("sans-serif", 12).into_font().color(&INK);
    area.draw(&Text::new(curve.note.clone(), (from + 36, y + 8), text)).map_err(boxed)
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        RangedCoordf64::from(self.range()).map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        let range = self.range.start..=self.range.end;
        self.marks.iter().map(|(at, _)| *at).filter(|at| range.contains(at)).collect()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, at: &f64) -> String {
        let mark = self.marks.iter().find(|(mark, _)| mark == at);
        mark.map(|(_, label)| label.clone()).unwrap_or_default()
    }
}

impl Curve {
    fn style(&self) -> ShapeStyle {
        self.color.stroke_width(if self.stroke == Stroke::Thick { 3 } else { 2 })
    }
}

/// Converts an error of the library, which is not `Send`, to its text.
fn boxed(error: impl std::fmt::Display) -> Box<dyn Error + Send + Sync> {
    error.to_string().into()
}
