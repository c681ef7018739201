//! `tercile plot`: draws a segmentation as SVG.

use std::io::Write as _;

use clap::Args;

use super::output_file::{Output, OutputFile};
use super::{Done, completions};
use crate::config::{StoreArgs, language};
use crate::model::{ModelRegistry, model_ref};
use crate::plot;

/// Plot a segmentation as SVG: a sample of its records, coloured by cluster
///
/// Two features give a scatter plot with the centroids, one gives a histogram. A heavy-tailed feature gets a logarithmic axis.
#[derive(Args)]
pub struct Plot {
    /// A segmentation, one of its slices, or a version: price_rating, price_rating@2, price_rating@2@5
    #[arg(value_name = "NAME", add = completions::model())]
    name: String,
    /// File for the plot [default: stdout]
    #[arg(short, long, env = "TERCILE_OUT", value_name = "FILE")]
    out: Option<OutputFile>,
    /// One or two features for the axes [default: the first two]
    #[arg(long, env = "TERCILE_AXES", value_name = "X,Y", value_delimiter = ',', num_args = 1..=2)]
    axes: Vec<String>,
    /// The language of the clusters' names
    #[arg(long, env = "TERCILE_LANG", value_name = "LANG", default_value = "en", value_parser = language)]
    lang: String,
    #[command(flatten)]
    store: StoreArgs,
}

impl Plot {
    pub fn run(self) -> anyhow::Result<Done> {
        if let Some(file) = &self.out {
            file.check_format("svg")?;
        }
        let out = Output::open(self.out.as_ref())?;
        let store = self.store.look()?;
        let model = model_ref::find(&store, &self.name).map_err(anyhow::Error::msg)?;
        let sample = ModelRegistry::new(&store, &model.segmentation).sample_of(&model)?;
        let svg = plot::svg(&model, &sample, &self.axes, &self.lang)?;
        (&out).write_all(svg.as_bytes())?;
        out.commit()?;
        Ok(Done::Well)
    }
}
