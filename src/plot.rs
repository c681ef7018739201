//! Plot of a model as SVG: the model's sample, coloured by cluster.
//!
//! Input: a model, the sample stored with it, and the features to plot. Output: self-contained SVG text. Two features give a
//! scatter plot with centroids and cluster names, one feature gives a stacked histogram. Points with an imputed value (a
//! missing value replaced by the mean) are drawn hollow.

use std::fmt::Write as _;

use datafusion::arrow::array::{AsArray as _, RecordBatch};
use datafusion::arrow::datatypes::{Float64Type, UInt32Type};

use crate::model::{Model, NoLanguage, imputed};

/// Palette that is distinguishable with most kinds of colour vision (Okabe and Ito, "Color universal design", 2008). Colours
/// repeat from the ninth cluster on.
pub const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d1f", "#666666"];
/// The least width and height; longer legends make the plot larger.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 600.0;
/// Letters of a line of the legend, unless a single word is longer, and the width of a letter.
const LINE: usize = 34;
const LETTER: f64 = 6.6;
/// Bounds of the plot area, in SVG units.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 680.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 540.0;
/// Number of histogram bars.
const BARS: usize = 60;

/// Error of a plot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the model {model} has no feature {feature}; it has {has}")]
    NoFeature { model: String, feature: String, has: String },
    #[error(transparent)]
    NoLanguage(#[from] NoLanguage),
    #[error("the sample of {model} has no column {column}; train again")]
    NoColumn { model: String, column: String },
}

/// Plots a model with the given features on the axes. The default is the model's first two features, or its only one.
///
/// # Errors
/// If the model has no such feature or no descriptions in `language`, or if the sample lacks a column.
pub fn svg(model: &Model, sample: &RecordBatch, axes: &[String], language: &str) -> Result<String, Error> {
    let shown: Vec<&String> =
        if axes.is_empty() { model.features.iter().take(2).collect() } else { axes.iter().collect() };
    if let Some(feature) = shown.iter().find(|name| !model.features.contains(name)) {
        let (model_name, has) = (model.segmentation.clone(), model.features.join(", "));
        return Err(Error::NoFeature { model: model_name, feature: (*feature).clone(), has });
    }
    model.check_language(language)?;
    let missing = |column: &str| Error::NoColumn { model: model.segmentation.clone(), column: column.to_owned() };
    let values = |name: &str| {
        let column = sample.column_by_name(name).and_then(|column| column.as_primitive_opt::<Float64Type>());
        column.map(|column| column.values().to_vec()).ok_or_else(|| missing(name))
    };
    let clusters = sample.column_by_name("cluster").and_then(|column| column.as_primitive_opt::<UInt32Type>());
    let clusters = clusters.ok_or_else(|| missing("cluster"))?;
    let clusters: Vec<usize> = clusters.values().iter().map(|&cluster| cluster as usize).collect();
    // Rows with an imputed value on one of the plotted axes.
    let masks = imputed::of(sample);
    let on_axis: Vec<usize> = (0..model.features.len()).filter(|&i| shown.contains(&&model.features[i])).collect();
    let hollow = |row: usize| masks.is_some_and(|masks| on_axis.iter().any(|&i| imputed::is_set(masks.value(row), i)));
    let hollow: Vec<bool> = (0..sample.num_rows()).map(hollow).collect();
    let scale = model.scale();
    let place = |name: &String| model.features.iter().position(|feature| feature == name).unwrap_or_default();
    let names: Vec<String> = model.clusters.iter().map(|cluster| cluster.descriptions[language].clone()).collect();
    let hollow_points = hollow.iter().filter(|hollow| **hollow).count();
    let (legend, size) = legend(model, &names, hollow_points);
    let mut svg = head(model, sample.num_rows(), size);
    match shown.as_slice() {
        [x, y, ..] => {
            let (xs, ys) = (values(x)?, values(y)?);
            let axis = |name, values, from, to| Axis::of(values, scale.is_log(place(name)), from, to);
            let (across, up) = (axis(x, &xs, LEFT, RIGHT), axis(y, &ys, BOTTOM, TOP));
            across.draw(&mut svg, x, true);
            up.draw(&mut svg, y, false);
            for (((x, y), cluster), &hollow) in xs.iter().zip(&ys).zip(&clusters).zip(&hollow) {
                let (x, y, paint) = (across.at(*x), up.at(*y), paint(*cluster, hollow));
                let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" {paint}/>");
            }
            for (cluster, name) in model.clusters.iter().zip(&names) {
                let at = |feature: &str| cluster.centroid.get(feature).copied().unwrap_or_default();
                let (x, y) = (across.at(at(x)), up.at(at(y)));
                let _ = writeln!(
                    svg,
                    "<path d=\"M{:.1} {y:.1}h16M{x:.1} {:.1}v16\" class=\"cross\"><title>{}</title></path>",
                    x - 8.0,
                    y - 8.0,
                    escape(name)
                );
            }
        }
        [x] => {
            let values = values(x)?;
            let across = Axis::of(&values, scale.is_log(place(x)), LEFT, RIGHT);
            histogram(&mut svg, (x, &across), &values, (&clusters, &hollow), model.clusters.len());
        }
        [] => {}
    }
    svg.push_str(&legend);
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn colour(cluster: usize) -> &'static str {
    COLOURS[cluster % COLOURS.len()]
}

/// SVG paint attributes of a mark: filled, or an outline if hollow.
fn paint(cluster: usize, hollow: bool) -> String {
    let colour = colour(cluster);
    match hollow {
        true => format!("fill=\"none\" stroke=\"{colour}\" stroke-opacity=\"0.7\""),
        false => format!("fill=\"{colour}\" fill-opacity=\"0.55\""),
    }
}

fn head(model: &Model, points: usize, (width, height): (f64, f64)) -> String {
    let title = format!("{} of slice {}, version {}", model.segmentation, model.slice, model.version);
    let title = escape(&title);
    let silhouette = model.silhouette.map_or(String::new(), |value| format!(", silhouette {value:.3}"));
    let below = format!("{points} of {} rows, k = {}, inertia {:.2}{silhouette}", model.rows, model.k, model.inertia);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-labelledby=\"title\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<title id=\"title\">{title}</title>\n<style>\n\
         svg{{background:#fff}}text{{fill:#222}}.axis{{stroke:#888;fill:none}}.grid{{stroke:#e4e4e4}}\n\
         .cross{{stroke:#000;stroke-width:3;fill:none}}\n\
         @media (prefers-color-scheme:dark){{svg{{background:#16181c}}text{{fill:#ddd}}.grid{{stroke:#33363c}}.cross{{stroke:#fff}}}}\n\
         </style>\n<text x=\"{LEFT}\" y=\"26\" font-size=\"16\" font-weight=\"bold\">{title}</text>\n\
         <text x=\"{LEFT}\" y=\"44\">{below}</text>\n"
    )
}

/// The legend, and the width and height of the plot that contains it.
fn legend(model: &Model, names: &[String], hollow: usize) -> (String, (f64, f64)) {
    let (left, text_left) = (RIGHT + 20.0, RIGHT + 40.0);
    let mut entries: Vec<(Vec<String>, String, String)> = Vec::new();
    for (i, (cluster, name)) in model.clusters.iter().zip(names).enumerate() {
        let share = 100.0 * cluster.size as f64 / model.rows.max(1) as f64;
        let below = format!("cluster {}: {} rows, {}", cluster.cluster, cluster.size, percent(share));
        entries.push((lines(name), below, format!("width=\"12\" height=\"12\" fill=\"{}\"", colour(i))));
    }
    if hollow > 0 {
        let below = format!("{hollow} of the drawn rows");
        let mark = "width=\"11\" height=\"11\" class=\"axis\"".to_owned();
        entries.push((vec!["missing, drawn at the mean".to_owned()], below, mark));
    }
    let (mut svg, mut y, mut longest) = (String::new(), TOP + 12.0, 0);
    for (name, below, mark) in entries {
        // Writing to a string cannot fail.
        let _ = write!(svg, "<rect x=\"{left}\" y=\"{}\" {mark}/>", y - 10.0);
        for line in name {
            longest = longest.max(line.chars().count());
            let _ = write!(svg, "<text x=\"{text_left}\" y=\"{y}\">{}</text>", escape(&line));
            y += 15.0;
        }
        longest = longest.max(below.chars().count());
        let _ = writeln!(svg, "<text x=\"{text_left}\" y=\"{y}\" fill-opacity=\"0.7\">{below}</text>");
        y += 21.0;
    }
    let width = (text_left + longest as f64 * LETTER + 12.0).max(WIDTH);
    (svg, (width.ceil(), y.max(HEIGHT)))
}

/// A share in percent. One that is neither nothing nor all is not rounded to either.
fn percent(share: f64) -> String {
    match share {
        share if share > 0.0 && share < 0.1 => "< 0.1%".to_owned(),
        share if share > 99.9 && share < 100.0 => "> 99.9%".to_owned(),
        share => format!("{share:.1}%"),
    }
}

/// A name in lines of at most [`LINE`] letters, divided after commas, and at blanks if a part is longer.
fn lines(name: &str) -> Vec<String> {
    let length = |text: &str| text.trim_end().chars().count();
    let mut lines = vec![String::new()];
    for part in name.split_inclusive(", ") {
        let units: Vec<&str> = if length(part) > LINE { part.split_inclusive(' ').collect() } else { vec![part] };
        for unit in units {
            match lines.last_mut() {
                Some(line) if line.is_empty() || line.chars().count() + length(unit) <= LINE => line.push_str(unit),
                _ => lines.push(unit.to_owned()),
            }
        }
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// Draws a stacked histogram. A bar stacks the clusters; the hollow rows of a cluster are stacked on its other rows.
fn histogram(
    svg: &mut String,
    (name, across): (&str, &Axis),
    values: &[f64],
    (clusters, hollow): (&[usize], &[bool]),
    k: usize,
) {
    // Two counts per cluster: filled rows, hollow rows.
    let mut counts = vec![vec![0_u32; 2 * k]; BARS];
    let width = (RIGHT - LEFT) / BARS as f64;
    for ((&value, &cluster), &hollow) in values.iter().zip(clusters).zip(hollow) {
        let bar = (((across.at(value) - LEFT) / width) as usize).min(BARS - 1);
        if let Some(count) = counts[bar].get_mut(2 * cluster + usize::from(hollow)) {
            *count += 1;
        }
    }
    let most = counts.iter().map(|bar| bar.iter().sum::<u32>()).max().unwrap_or(0).max(1);
    let up = Axis { low: 0.0, high: f64::from(most), logarithmic: false, from: BOTTOM, to: TOP };
    across.draw(svg, name, true);
    up.draw(svg, "rows of the sample", false);
    for (i, bar) in counts.iter().enumerate() {
        let mut below = 0;
        for (part, &count) in bar.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (bottom, top) = (up.at(f64::from(below)), up.at(f64::from(below + count)));
            below += count;
            let paint = match part % 2 {
                0 => format!("fill=\"{}\"", colour(part / 2)),
                _ => paint(part / 2, true),
            };
            let _ = writeln!(
                svg,
                "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" {paint}/>",
                LEFT + width * i as f64,
                width - 1.0,
                bottom - top,
            );
        }
    }
}

/// Maps values to SVG coordinates.
struct Axis {
    low: f64,
    high: f64,
    /// Scale ln(1 + value), for heavy-tailed features.
    logarithmic: bool,
    from: f64,
    to: f64,
}

impl Axis {
    /// `log`: the model has the feature on a logarithmic scale.
    fn of(values: &[f64], log: bool, from: f64, to: f64) -> Self {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            sorted.get(((sorted.len().max(1) - 1) as f64 * share).round() as usize).copied().unwrap_or(0.0)
        };
        let (low, high) = (quantile(0.0), quantile(1.0));
        // Heavy tail: the 98th percentile exceeds the median so far that a linear axis would draw most points in one spot.
        let heavy = quantile(0.5) > 0.0 && quantile(0.98) > 8.0 * quantile(0.5);
        let logarithmic = low >= 0.0 && (log || heavy);
        // A constant feature is drawn in the middle of the axis.
        let room = if low < high { 0.0 } else { low.abs().max(1.0) * 0.5 };
        Self { low: low - room, high: high + room, logarithmic, from, to }
    }

    fn scaled(&self, value: f64) -> f64 {
        if self.logarithmic { value.max(0.0).ln_1p() } else { value }
    }

    fn at(&self, value: f64) -> f64 {
        // Halved before subtraction: the span of the largest doubles overflows.
        let (low, high) = (self.scaled(self.low) / 2.0, self.scaled(self.high) / 2.0);
        let share = ((self.scaled(value) / 2.0 - low) / (high - low)).clamp(0.0, 1.0);
        self.from + share * (self.to - self.from)
    }

    /// Round tick values within the axis.
    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            // Powers of ten; if they are few, also 2 and 5 times a power, and from 0 on.
            for steps in [&[1.0][..], &[1.0, 2.0, 5.0]] {
                let all = (0..308).flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)));
                let zero = (self.low == 0.0).then_some(0.0);
                let within = all.skip_while(|tick| *tick < self.low).take_while(|tick| *tick <= self.high);
                let ticks: Vec<f64> = zero.into_iter().chain(within).collect();
                if ticks.len() > 3 {
                    let every = ticks.len().div_ceil(12);
                    return ticks.into_iter().step_by(every).collect();
                }
            }
        }
        let raw = (self.high / 5.0 - self.low / 5.0).max(f64::MIN_POSITIVE);
        let power = 10_f64.powf(raw.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| *step >= raw).unwrap_or(raw);
        let first = (self.low / step).ceil();
        (0..12).map(|i| (first + f64::from(i)) * step).filter(|tick| *tick <= self.high).collect()
    }

    fn draw(&self, svg: &mut String, name: &str, across: bool) {
        let name = escape(name) + if self.logarithmic { " (log scale)" } else { "" };
        for tick in self.ticks() {
            let (at, text) = (self.at(tick), number(tick));
            let _ = if across {
                writeln!(
                    svg,
                    "<path d=\"M{at:.1} {TOP}V{BOTTOM}\" class=\"grid\"/>\
                     <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
                    BOTTOM + 18.0
                )
            } else {
                writeln!(
                    svg,
                    "<path d=\"M{LEFT} {at:.1}H{RIGHT}\" class=\"grid\"/>\
                     <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                    LEFT - 8.0,
                    at + 4.0
                )
            };
        }
        let middle = f64::midpoint(self.from, self.to);
        let _ = if across {
            writeln!(
                svg,
                "<path d=\"M{LEFT} {BOTTOM}H{RIGHT}\" class=\"axis\"/>\
                 <text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" font-weight=\"bold\">{name}</text>",
                BOTTOM + 40.0
            )
        } else {
            writeln!(
                svg,
                "<path d=\"M{LEFT} {TOP}V{BOTTOM}\" class=\"axis\"/><text x=\"20\" y=\"{middle}\" \
                 text-anchor=\"middle\" font-weight=\"bold\" transform=\"rotate(-90 20 {middle})\">{name}</text>"
            )
        };
    }
}

/// Formats a tick value briefly.
fn number(value: f64) -> String {
    match value.abs() {
        size if size != 0.0 && !(1e-4..1e9).contains(&size) => format!("{value:e}"),
        size if size >= 1e6 => format!("{}M", value / 1e6),
        size if size >= 1e4 => format!("{}k", value / 1e3),
        // Ticks are sums of steps, so rounding errors are cut off.
        _ => format!("{}", (value * 1e6).round() / 1e6),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ticks_within_them() {
        let ticks = |values: &[f64]| Axis::of(values, false, 0.0, 100.0).ticks();
        assert_eq!(ticks(&[1.9, 3.0, 4.8]), [2.0, 3.0, 4.0]);
        assert_eq!(ticks(&[-0.5, 0.0, 0.5]), [-0.4, -0.2, 0.0, 0.2, 0.4]);
        assert_eq!(ticks(&[0.0, 3.0, 5.0, 9.0, 20_000.0]), [0.0, 1.0, 10.0, 100.0, 1000.0, 10_000.0]);
        assert_eq!(ticks(&[4.0, 5.0, 5.0, 90.0]), [5.0, 10.0, 20.0, 50.0], "less than two powers of ten");
        assert_eq!(ticks(&[7.0, 7.0]), [4.0, 6.0, 8.0, 10.0]);
        assert!(ticks(&[]).len() > 1);
        assert!(!ticks(&[f64::MIN, 0.0, f64::MAX]).is_empty());
    }

    #[test]
    fn names_are_divided_between_words() {
        assert_eq!(lines("Low Price, High Rating"), ["Low Price, High Rating"]);
        let long = "Low Price, High Rating, Many Reviews, Medium Discount";
        assert_eq!(lines(long), ["Low Price, High Rating,", "Many Reviews, Medium Discount"]);
        assert_eq!(lines("a name of more than thirty-four letters"), ["a name of more than thirty-four", "letters"]);
        assert_eq!(lines(&"x".repeat(50)), ["x".repeat(50)]);
    }

    #[test]
    fn places_stay_on_the_paper() {
        for values in [vec![1.0, 2.0], vec![5.0], vec![f64::MIN, f64::MAX], vec![0.0, 1.0, 1e300]] {
            let axis = Axis::of(&values, false, 10.0, 90.0);
            for value in [values[0], values[values.len() - 1], 0.0, 1e308, -1e308] {
                assert!((10.0..=90.0).contains(&axis.at(value)), "{values:?} {value}");
            }
        }
    }
}
