//! The SVG output of `tercile plot`.

use common::Place;

use crate::common;

#[test]
fn a_segmentation_is_drawn() {
    let place = Place::new();
    assert_eq!(place.up(&[]).interrupt().code, Some(0));
    let rows = usize::try_from(place.number("SELECT count(*) FROM price_rating")).unwrap();
    let scatter = place.ok(&["plot", "price_rating"]);
    assert_eq!(scatter.matches("<circle").count(), rows.min(5000));
    assert_eq!(scatter.matches("class=\"cross\"><title>").count(), 3);
    for text in [
        "High Price, High Rating</text>",
        ">discounted_price (log scale)</text>",
        ">rating</text>",
        "price_rating of slice 3",
    ] {
        assert!(scatter.contains(text), "{text}");
    }
    // Every opened tag is closed in order.
    let mut open = Vec::new();
    for tag in scatter.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()) {
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap().to_owned());
        }
    }
    assert!(open.is_empty());

    // One feature: each row of the sample is in one bar, and the legend names the clusters.
    place.ok(&["plot", "discount@1", "--lang", "id", "--out", "discount.svg"]);
    let histogram = std::fs::read_to_string(place.path("discount.svg")).unwrap();
    assert!(histogram.contains("discount of slice 1") && histogram.contains("Diskon"), "{histogram}");
    assert!(!histogram.contains("<circle"));
    let swapped = place.ok(&["plot", "price_rating", "--axes", "rating,discounted_price"]);
    assert!(swapped.find(">rating</text>") < swapped.find(">discounted_price (log scale)</text>"));
    assert!(
        place
            .fails(1, &["plot", "price_rating", "--axes", "price"])
            .contains("no feature price; it has discounted_price, rating")
    );
    assert!(
        place
            .fails(1, &["plot", "price_rating", "--lang", "xx"])
            .contains("no names in the language xx; they have en, id")
    );
    assert!(place.fails(1, &["plot", "nothing"]).contains("nothing"));
}
