//! `tercile suggest-k`: suggests a number of clusters for the rows of a file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Serialize;
use tercile_kmeans::features::Scale;
use tercile_kmeans::{self as kmeans, Init, Limits, Points, Settings};

use super::fit::FileArgs;
use super::output_file::OutputFile;
use super::table::short;
use super::{Done, Terminal, imputed, table, thousands};
use crate::fit;
use crate::missing::{self, NotNumbers};
use crate::model::Tiny;
use crate::sql::header::MAX_K;
use crate::suggest::{self, Candidate, Structure, Suggestion};

/// Suggest a number of clusters for a Parquet, Arrow, CSV or JSON file
///
/// For each number of clusters: inertia, silhouette, and stability (mean adjusted Rand index between the clusters that eight seeds
/// find in random halves; 1 means equal). For more than 5,000 rows, silhouette and stability are measured on a sample that
/// includes rare clusters. The elbow of the inertia, the greatest silhouette, and the greatest number within 0.05 of the best
/// stability each suggest a number; the recommendation is the one that two of them suggest, and the output says if they disagree.
#[derive(Args)]
pub struct SuggestK {
    #[command(flatten)]
    from: FileArgs,
    /// Smallest number of clusters
    #[arg(long, env = "TERCILE_MIN_K", value_name = "N", default_value_t = 2)]
    min_k: usize,
    /// Largest number of clusters
    #[arg(long, env = "TERCILE_MAX_K", value_name = "N", default_value_t = 10)]
    max_k: usize,
    /// File for a plot of the three curves, as SVG
    #[arg(long, env = "TERCILE_SVG", value_name = "FILE")]
    svg: Option<OutputFile>,
    /// Print the result as JSON
    #[arg(long, env = "TERCILE_JSON", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    json: bool,
}

#[derive(Serialize)]
struct Printed<'a> {
    file: &'a std::path::Path,
    rows: usize,
    rows_left_out: u64,
    imputed: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    not_numbers: BTreeMap<String, NotNumbers>,
    features: &'a [String],
    candidates: &'a [Candidate],
    suggestion: Suggestion,
    /// The comparison with rows that are spread evenly.
    structure: Structure,
    /// Rows that form clusters of their own with the recommended number of clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    tiny: Option<Tiny>,
}

impl SuggestK {
    pub fn run(self, terminal: &Terminal) -> anyhow::Result<Done> {
        let (low, high) = (self.min_k, self.max_k);
        ensure!(low <= high, "--min-k {low} is more than --max-k {high}");
        ensure!(2 <= low && high <= MAX_K, "--min-k and --max-k must be from 2 to {MAX_K}, found {low} and {high}");
        let FileArgs { file, features, seed, .. } = &self.from;
        self.from.check()?;
        let scaling = self.from.scaling()?;
        if let Some(file) = &self.svg {
            file.check_format("svg")?;
        }
        let svg = self.svg.as_ref().map(OutputFile::open).transpose()?;
        let bar = terminal.bar(None);
        bar.enable_steady_tick(Duration::from_millis(100));
        bar.set_message(format!("reading {}", file.display()));
        let threads = self.from.threads();
        let columns = self.from.read(&self.from.input()?)?;
        let starts = self.from.starts(columns.rows);
        let limits = Limits { iterations: 300, tolerance: 0.0 };
        let settings = Settings { k: low, seed: *seed, starts, limits, threads };
        bar.set_message(format!("{low} clusters"));
        let mut told = |candidate: &Candidate| {
            bar.set_message(format!("{} clusters: inertia {}", candidate.k, short(candidate.inertia)));
        };
        let mut found = || -> Result<_, fit::Error> {
            let scale = Scale::measure_as(features, &columns.columns, &scaling, threads)?;
            let rows = suggest::Rows { scale: &scale, columns: &columns.columns, weights: None };
            let candidates = suggest::candidates(rows, low..=high, &settings, &mut told)?;
            let suggestion = suggest::suggest(&candidates);
            bar.set_message("clusters of evenly spread rows, for comparison");
            let structure = suggest::structure(rows, &candidates, &settings)?;
            let recommended = Settings { k: suggestion.recommended, ..settings.clone() };
            let best = kmeans::fit(&Points::new(&scale, &columns.columns), &recommended, Init::Drawn(None), &|_| {})?;
            let tiny = suggest::tiny(rows, &best, low..=high, &settings)?;
            Ok((candidates, suggestion, structure, tiny))
        };
        let found = found();
        bar.finish_and_clear();
        let (candidates, suggestion, structure, tiny) =
            found.with_context(|| format!("cannot cluster {}", file.display()))?;
        if let Some(last) = candidates.last().filter(|last| last.k < high) {
            tracing::warn!("no more than {} clusters: there are not that many different rows", last.k);
        }
        if let Some(svg) = svg {
            (&svg).write_all(picture(&candidates, &suggestion).as_bytes())?;
            svg.commit()?;
        }
        let printed = Printed {
            file,
            rows: columns.rows,
            rows_left_out: columns.rows_left_out,
            imputed: fit::imputed(features, &columns.columns),
            not_numbers: missing::not_numbers(features, &columns.gaps),
            features,
            candidates: &candidates,
            suggestion,
            structure,
            tiny,
        };
        let text = match self.json {
            true => serde_json::to_string_pretty(&printed)? + "\n",
            false => words(&printed, &imputed::of_file(features, &columns)),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(Done::Well)
    }
}

/// The text report. `imputed` contains lines about missing values.
fn words(printed: &Printed<'_>, imputed: &str) -> String {
    let Printed { file, rows, features, candidates, suggestion, .. } = printed;
    let Suggestion { elbow, silhouette, stability, recommended, agree } = *suggestion;
    let row = |candidate: &Candidate| {
        let picks = [("elbow", elbow), ("silhouette", silhouette), ("stability", stability)];
        let picked: Vec<&str> = picks.iter().filter(|(_, k)| *k == candidate.k).map(|(name, _)| *name).collect();
        let silhouette = candidate.silhouette.map_or_else(String::new, |score| format!("{score:.4}"));
        let stability = format!("{:.3}", candidate.stability);
        vec![candidate.k.to_string(), short(candidate.inertia), silhouette, stability, picked.join(", ")]
    };
    let all: Vec<Vec<String>> = candidates.iter().map(row).collect();
    let told = match agree {
        _ if candidates.len() == 1 => format!("{recommended} clusters is all that was tried"),
        3 => format!("{recommended} clusters: elbow, silhouette and stability agree"),
        2 => format!(
            "{recommended} clusters, as two of three say; elbow {elbow}, silhouette {silhouette}, stability {stability}"
        ),
        _ => format!(
            "no clear number: elbow {elbow}, silhouette {silhouette}, stability {stability}; \
             try {recommended}, and look at what the clusters mean"
        ),
    };
    let mut table = table::render(&["k", "inertia", "silhouette", "stability", "picked by"], &all);
    let sampled = candidates.iter().map(|candidate| candidate.sample_rows).max().unwrap_or(0);
    if sampled < *rows as u64 {
        table
            .push_str(&format!("silhouette and stability are those of samples of up to {} rows\n", thousands(sampled)));
    }
    let told = match printed.structure.found {
        true => told,
        false => format!(
            "no cluster structure: the clusters are no farther apart than those of rows that are spread evenly; each number divides one \
             cloud ({told})"
        ),
    };
    let tiny = printed.tiny.as_ref().map(|tiny| tiny.sentence(&thousands(*rows as u64), &thousands(tiny.rows)) + "\n");
    let tiny = tiny.unwrap_or_default();
    format!(
        "{} rows of {}, by {}\n{table}{imputed}{tiny}{told}\n",
        thousands(*rows as u64),
        file.display(),
        features.join(", ")
    )
}

/// Three small charts side by side, each with its suggestion marked.
fn picture(candidates: &[Candidate], suggestion: &Suggestion) -> String {
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 900 260\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"900\" height=\"260\" fill=\"#fff\"/>\n",
    );
    let curves: [(&str, usize, Vec<f64>); 3] = [
        ("inertia", suggestion.elbow, candidates.iter().map(|candidate| candidate.inertia).collect()),
        ("silhouette", suggestion.silhouette, candidates.iter().map(|c| c.silhouette.unwrap_or(0.0)).collect()),
        ("stability", suggestion.stability, candidates.iter().map(|candidate| candidate.stability).collect()),
    ];
    for (panel, (name, pick, values)) in curves.iter().enumerate() {
        let left = 55.0 + 300.0 * panel as f64;
        let (low, high) = values.iter().fold((0.0_f64, f64::MIN_POSITIVE), |(low, high), &v| (low.min(v), high.max(v)));
        let x = |i: usize| left + 225.0 * (i as f64 + 0.5) / values.len() as f64;
        let y = |value: f64| 210.0 - 160.0 * (value - low) / (high - low);
        let points: Vec<String> = values.iter().enumerate().map(|(i, &v)| format!("{:.1},{:.1}", x(i), y(v))).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(svg, "<text x=\"{left}\" y=\"30\" font-weight=\"bold\">{name}: picks {pick}</text>");
        let _ = writeln!(svg, "<path d=\"M{left} 50V210H{}\" fill=\"none\" stroke=\"#999\"/>", left + 225.0);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"54\" text-anchor=\"end\">{}</text>", left - 4.0, axis(high));
        let _ = writeln!(svg, "<text x=\"{}\" y=\"214\" text-anchor=\"end\">{}</text>", left - 4.0, axis(low));
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"#27c\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        for (i, (candidate, &value)) in candidates.iter().zip(values).enumerate() {
            let (radius, fill) = if candidate.k == *pick { (6, "#d43") } else { (3, "#27c") };
            let _ = writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\" fill=\"{fill}\"/>", x(i), y(value));
            if candidates.len() <= 16 || i % 4 == 0 {
                let _ =
                    writeln!(svg, "<text x=\"{:.1}\" y=\"228\" text-anchor=\"middle\">{}</text>", x(i), candidate.k);
            }
        }
        let _ = writeln!(svg, "<text x=\"{}\" y=\"248\" text-anchor=\"middle\">clusters</text>", left + 112.0);
    }
    svg + "</svg>\n"
}

fn axis(value: f64) -> String {
    if value.abs() < 1000.0 { format!("{value:.2}") } else { format!("{value:.1e}") }
}
