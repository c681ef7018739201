//! A scheduler and two executors of one task each, as processes.

use super::{Place, Running, eventually};

/// A scheduler, its address, and two executors that it knows.
pub fn cluster(place: &Place) -> (Running, String, [Running; 2]) {
    let mut scheduler = place.start(&["scheduler", "--bind", "127.0.0.1:0"]);
    let address = format!("df://{}", scheduler.line_with("df://"));
    let executors = [(); 2].map(|()| {
        let mut executor = place.start(&["executor", "--scheduler", &address, "--threads", "1"]);
        executor.line_with("127.0.0.1:");
        executor
    });
    let http = address.replace("df://", "http://");
    eventually("two executors", || {
        ureq::get(format!("{http}/readyz"))
            .call()
            .is_ok_and(|mut answer| answer.body_mut().read_to_string().is_ok_and(|text| text.contains("2 executors")))
    });
    (scheduler, address, executors)
}
