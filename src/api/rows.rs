//! Rows and predictions as described in the OpenAPI document. bulk/lines.rs serialises the predictions.

use std::collections::BTreeMap;

use poem_openapi::Object;
use poem_openapi::types::Example;

macro_rules! typed_rows {
    ($row:ident, $features:ident, $prediction:ident, $title:literal, $description:literal,
     { $($(#[$doc:meta])* $field:ident: $example:literal,)+ }) => {
        #[doc = concat!("A row of the segmentation by ", $title, ". Fields beside these are ignored.")]
        #[derive(Debug, Clone, Object)]
        #[oai(example)]
        pub struct $row {
            $($(#[$doc])* pub $field: f64,)+
        }

        impl Example for $row {
            fn example() -> Self {
                Self { $($field: $example,)+ }
            }
        }

        #[doc = concat!("The features of a row of the segmentation by ", $title, ", and its cluster.")]
        #[derive(Debug, Clone, Object)]
        pub struct $features {
            $($(#[$doc])* pub $field: f64,)+
            /// The cluster's number.
            pub prediction: u32,
        }

        #[doc = concat!("The answer for one row of the segmentation by ", $title, ".")]
        #[derive(Debug, Clone, Object)]
        #[oai(example)]
        pub struct $prediction {
            /// The cluster's number, from 0.
            pub cluster: u32,
            /// What the cluster's centroid is like.
            pub description: String,
            pub features: $features,
            /// Distance to the centroid, in standardised units.
            pub distance: f64,
            /// Whether the row is farther from its centroid than 999 of 1,000 rows of the training in its cluster. Not given with
            /// `fit=request` and by models of earlier versions.
            #[oai(skip_serializing_if_is_none)]
            pub unlike: Option<bool>,
            /// The slice whose model answered; not given with `fit=request`.
            #[oai(skip_serializing_if_is_none)]
            pub model: Option<u8>,
            /// The version of that model; not given with `fit=request`.
            #[oai(skip_serializing_if_is_none)]
            pub version: Option<u64>,
            /// Why this cluster; only with `explain=true`.
            #[oai(skip_serializing_if_is_none)]
            pub explanation: Option<Explanation>,
        }

        impl Example for $prediction {
            fn example() -> Self {
                Self {
                    cluster: 0,
                    description: $description.to_owned(),
                    features: $features { $($field: $example,)+ prediction: 0 },
                    distance: 0.25,
                    unlike: Some(false),
                    model: Some(3),
                    version: Some(3),
                    explanation: None,
                }
            }
        }
    };
}

typed_rows!(PriceRatingRow, PriceRatingFeatures, PriceRatingPrediction, "price and rating", "Low Price, High Rating", {
    /// Price after the discount, in rupees.
    discounted_price: 300.0,
    /// Mean rating, from 0 to 5.
    rating: 4.5,
});
typed_rows!(RatingCountRow, RatingCountFeatures, RatingCountPrediction, "rating and number of reviews", "High Rating, High Reviews", {
    /// Mean rating, from 0 to 5.
    rating: 4.8,
    /// Number of reviews.
    rating_count: 20000.0,
});
typed_rows!(DiscountRow, DiscountFeatures, DiscountPrediction, "discount", "High Discount", {
    /// Discount in percent, from 0 to 100.
    discount_percentage: 60.0,
});

/// A row for any segmentation: a number for each of its features. Other fields come back under `other`.
pub type AnyRow = BTreeMap<String, serde_json::Value>;

/// The answer for one row of any segmentation.
#[derive(Debug, Clone, Object)]
pub struct Prediction {
    /// The cluster's number, from 0.
    pub cluster: u32,
    /// What the cluster's centroid is like.
    pub description: String,
    /// The row's features, and the cluster's number as `prediction`.
    pub features: BTreeMap<String, f64>,
    /// Distance to the centroid, in standardised units.
    pub distance: f64,
    /// Whether the row is farther from its centroid than 999 of 1,000 rows of the training in its cluster. Not given with `fit=request`
    /// and by models of earlier versions.
    #[oai(skip_serializing_if_is_none)]
    pub unlike: Option<bool>,
    /// The slice whose model answered; not given with `fit=request`.
    #[oai(skip_serializing_if_is_none)]
    pub model: Option<u8>,
    /// The version of that model; not given with `fit=request`.
    #[oai(skip_serializing_if_is_none)]
    pub version: Option<u64>,
    /// The row's other fields, as they came.
    pub other: BTreeMap<String, serde_json::Value>,
    /// Why this cluster; only with `explain=true`.
    #[oai(skip_serializing_if_is_none)]
    pub explanation: Option<Explanation>,
}

/// The answer for one raw record: its cluster, or the reason why it has none.
#[derive(Debug, Clone, Object)]
pub struct RecordScore {
    /// The cluster's number, from 0; null if the record has no cluster.
    pub cluster: Option<u32>,
    /// What the cluster's centroid is like.
    #[oai(skip_serializing_if_is_none)]
    pub description: Option<String>,
    /// The features that the SQL gives for the record.
    #[oai(skip_serializing_if_is_none)]
    pub features: Option<BTreeMap<String, f64>>,
    /// Distance to the centroid, in standardised units.
    #[oai(skip_serializing_if_is_none)]
    pub distance: Option<f64>,
    /// Whether the record is farther from its centroid than 999 of 1,000 rows of the training in its cluster.
    #[oai(skip_serializing_if_is_none)]
    pub unlike: Option<bool>,
    /// The slice whose model answered.
    #[oai(skip_serializing_if_is_none)]
    pub model: Option<u8>,
    /// The version of that model.
    #[oai(skip_serializing_if_is_none)]
    pub version: Option<u64>,
    /// Why the record has no cluster: it cannot be parsed, the SQL leaves it out, or a feature is missing.
    #[oai(skip_serializing_if_is_none)]
    pub reason: Option<String>,
    /// Why this cluster; only with `explain=true`.
    #[oai(skip_serializing_if_is_none)]
    pub explanation: Option<Explanation>,
}

/// Why a row is in its cluster. All distances are in standardised units of the model that they belong to.
#[derive(Debug, Clone, Object)]
pub struct Explanation {
    /// The distance to each cluster's centroid, by the clusters' numbers.
    pub distances: Vec<f64>,
    /// The cluster that is second nearest; not given where there is only one.
    #[oai(skip_serializing_if_is_none)]
    pub runner_up: Option<u32>,
    /// How much farther the runner-up is: the smaller, the nearer a border.
    #[oai(skip_serializing_if_is_none)]
    pub margin: Option<f64>,
    /// Each feature's part of the squared distance to the own centroid, from 0 to 1; all 0 on the centroid itself.
    pub shares: BTreeMap<String, f64>,
    /// What the models say that serve the slices 1, 2 and 3.
    pub slices: Vec<SliceOpinion>,
}

/// What one slice's model says of a row. Of a slice without a model there is only `missing`.
#[derive(Debug, Clone, Object)]
pub struct SliceOpinion {
    pub slice: u8,
    #[oai(skip_serializing_if_is_none)]
    pub version: Option<u64>,
    #[oai(skip_serializing_if_is_none)]
    pub cluster: Option<u32>,
    #[oai(skip_serializing_if_is_none)]
    pub description: Option<String>,
    #[oai(skip_serializing_if_is_none)]
    pub distance: Option<f64>,
    /// Why this slice has no model.
    #[oai(skip_serializing_if_is_none)]
    pub missing: Option<String>,
}
