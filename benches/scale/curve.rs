//! The time of a decision by the number of policies and of entities: this service, and Cedar's own
//! authorizer on the same directory and requests.
//!
//! The authorizer's entities end at 100,000: parsing a million takes most of a minute and several
//! gigabytes, and shows nothing new.

use std::path::Path;
use std::time::{Duration, Instant};

use cedar_pdp::pdp::authorize;

use crate::decide::{candidates_of, time_each};
use crate::loaded::Loaded;
use crate::plain::Plain;
use crate::support::Sizes;
use crate::support::statistics::{Spread, print_table};
use crate::support::targets::thousands;
use crate::svg::{Line, Panel};

/// The maximum for the authorizer. With fewer entities, 100,000 policies would share few folders
/// and groups.
const ENTITIES_BESIDE_POLICIES: usize = MOST_PLAIN_ENTITIES;
const POLICIES_BESIDE_ENTITIES: usize = 1_000;
const MOST_PLAIN_ENTITIES: usize = 100_000;
const REQUESTS: usize = 4_000;
/// The authorizer decides as many of them as it can in this time, and at least a few.
const PLAIN_TIME: Duration = Duration::from_secs(4);
const LEAST_PLAIN_REQUESTS: usize = 20;

/// The measurements of one size.
struct Point {
    policies: usize,
    entities: usize,
    candidates: Spread,
    ours: Spread,
    plain: Option<Spread>,
}

pub(crate) fn measure(sizes: Sizes, svg: Option<&Path>) -> anyhow::Result<()> {
    let powers = |from: u32, to: u32| (from..=to).map(|power| 10_usize.pow(power));
    let by_policies: Vec<Point> = powers(1, sizes.of(5, 3))
        .map(|policies| Point::measure(policies, ENTITIES_BESIDE_POLICIES))
        .collect::<anyhow::Result<_>>()?;
    let by_entities: Vec<Point> = powers(3, sizes.of(6, 4))
        .map(|entities| Point::measure(POLICIES_BESIDE_ENTITIES, entities))
        .collect::<anyhow::Result<_>>()?;
    print(
        &format!(
            "uncached decision by policies, {} entities",
            thousands(ENTITIES_BESIDE_POLICIES)
        ),
        &by_policies,
        |point| point.policies,
    );
    print(
        &format!(
            "uncached decision by entities, {} policies",
            thousands(POLICIES_BESIDE_ENTITIES)
        ),
        &by_entities,
        |point| point.entities,
    );
    if let Some(file) = svg {
        let panels = [
            panel(
                format!(
                    "policies ({} entities)",
                    thousands(ENTITIES_BESIDE_POLICIES)
                ),
                &by_policies,
                |point| point.policies,
            ),
            panel(
                format!(
                    "entities ({} policies)",
                    thousands(POLICIES_BESIDE_ENTITIES)
                ),
                &by_entities,
                |point| point.entities,
            ),
        ];
        std::fs::write(
            file,
            crate::svg::draw("one uncached decision, p50 in µs", &panels),
        )?;
        println!("\ndrawn to `{}`", file.display());
    }
    Ok(())
}

impl Point {
    fn measure(policies: usize, entities: usize) -> anyhow::Result<Self> {
        let loaded = Loaded::new(policies, entities, REQUESTS)?;
        let ours = time_each(&loaded.queries(), &|query| {
            authorize(&loaded.snapshot, query)
        })?;
        let ours = Spread::of(ours);
        let plain = (entities <= MOST_PLAIN_ENTITIES)
            .then(|| {
                let plain = Plain::load(loaded.directory.path())?;
                let started = Instant::now();
                let mut times = Vec::new();
                for drawn in &loaded.drawn_requests {
                    if times.len() >= LEAST_PLAIN_REQUESTS && started.elapsed() > PLAIN_TIME {
                        break;
                    }
                    times.push(plain.time(drawn)?);
                }
                anyhow::Ok(Spread::of(times))
            })
            .transpose()?;
        Ok(Self {
            policies,
            entities,
            candidates: candidates_of(&loaded)?,
            ours,
            plain,
        })
    }
}

fn print(title: &str, points: &[Point], by: impl Fn(&Point) -> usize) {
    let rows = points.iter().map(|point| {
        let plain =
            |show: &dyn Fn(&Spread) -> String| point.plain.as_ref().map_or("-".to_owned(), show);
        [
            thousands(by(point)),
            format!("{:.0}", point.candidates.median()),
            format!("{:.2}", point.ours.median()),
            format!("{:.2}", point.ours.percentile(99)),
            plain(&|plain| format!("{:.1}", plain.median())),
            plain(&|plain| format!("{:.1}", plain.percentile(99))),
            plain(&|plain| format!("{:.1}", plain.median() / point.ours.median())),
        ]
    });
    print_table(
        title,
        [
            "",
            "candidates p50",
            "ours p50 us",
            "p99 us",
            "plain p50 us",
            "p99 us",
            "plain / ours",
        ],
        rows,
    );
}

fn panel(axis: String, points: &[Point], by: impl Fn(&Point) -> usize) -> Panel {
    let line = |of: &dyn Fn(&Point) -> Option<f64>| {
        points
            .iter()
            .filter_map(|point| Some((by(point), of(point)?)))
            .collect()
    };
    Panel {
        axis,
        lines: vec![
            Line {
                name: "cedar_policy::Authorizer",
                colour: "#b3541e",
                points: line(&|point| Some(point.plain.as_ref()?.median())),
            },
            Line {
                name: "cedar-pdp",
                colour: "#1f6f8b",
                points: line(&|point| Some(point.ours.median())),
            },
        ],
    }
}
