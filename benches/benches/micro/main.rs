//! What single decisions cost: finding a pod and its credentials, telling who asks, deciding on a review.

mod caller;
mod cpu_time;
mod lookup;
mod mutate;
mod pods;

use std::time::Duration;

use anyhow::Result;
use criterion::Criterion;

use self::cpu_time::CpuTime;

fn main() -> Result<()> {
    let mut criterion = Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1500))
        .sample_size(50)
        .without_plots()
        .configure_from_args();
    lookup::run(&mut criterion)?;
    caller::run(&mut criterion)?;
    mutate::run(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
