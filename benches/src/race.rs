//! The race: each work by each system, in turn, round by round, so that whatever else the machine
//! does meets all of them alike.
//!
//! A run of a work in a mount is: fresh upper, mount, the caches as the work wants them, the timed work, and its result
//! compared with what the image says it has to be. A work that changed something is looked at again
//! after a remount. A work by containerd verifies itself. A system whose result is wrong gets no
//! time, and the race fails in the end.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::containers::ContainerWork;
use crate::containers::stage::Stage;
use crate::ground::{Ground, Layers, drop_caches};
use crate::host::Host;
use crate::interrupt::Interrupt;
use crate::stats::{Samples, Unit};
use crate::systems::{Mounted, System};
use crate::works::{Cache, Input, Outcome, Place, Target, Work};

/// Who races, in what, and how often.
#[derive(Debug)]
pub struct Race<'a> {
    /// Where it happens.
    pub ground: &'a Ground,
    /// The rows: works in a mount.
    pub works: &'a [Work],
    /// More rows: works by containerd.
    pub container_works: &'a [ContainerWork],
    /// The columns.
    pub systems: &'a [Box<dyn System>],
    /// How often each does each.
    pub rounds: usize,
    /// Ctrl-C.
    pub interrupt: Interrupt,
    /// Told what a row came to, and what went wrong.
    pub told: fn(&str),
}

/// What came out of a race.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// The machine and the day.
    pub host: Host,
    /// Of what the image was made.
    pub image: &'static str,
    /// How large everything was.
    pub scale: f64,
    /// How often each work was to be done.
    pub rounds: usize,
    /// Name and version of each system.
    pub systems: Vec<(String, String)>,
    /// The rows.
    pub rows: Vec<Row>,
    /// What was wrong: nothing, in a race that counts.
    pub failures: Vec<String>,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
}

/// One work, done by all systems.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The work's name.
    pub work: &'static str,
    /// Its title.
    pub title: &'static str,
    /// What Lamina has to reach.
    #[serde(skip)]
    pub target: Target,
    /// What is measured.
    pub unit: Unit,
    /// What each system has reached, in the order of [`Results::systems`].
    pub samples: Vec<Samples>,
}

impl Race<'_> {
    /// Runs it. An error is something that makes going on senseless.
    pub fn run(&self) -> Result<Results> {
        let mut results = self.nothing_yet()?;
        let bar = progress(self.steps())?;
        self.in_mounts(&bar, &mut results)?;
        if !self.container_works.is_empty() && !self.interrupt.asked() {
            self.by_containerd(&bar, &mut results)?;
        }
        results.interrupted = self.interrupt.asked();
        bar.finish_and_clear();
        self.ground.clear()?;
        Ok(results)
    }

    /// How many times something is done.
    fn steps(&self) -> usize {
        let by_containerd = self.container_works.iter();
        let by_containerd: usize = by_containerd.map(|work| work.rounds.min(self.rounds)).sum();
        (self.works.len() * self.rounds + by_containerd) * self.systems.len()
    }

    fn nothing_yet(&self) -> Result<Results> {
        let systems = self.systems.iter();
        let systems = systems.map(|system| Ok((system.name().to_owned(), system.version()?)));
        Ok(Results {
            host: Host::now(self.ground.dir())?,
            image: self.ground.source().name(),
            scale: self.ground.scale().factor(),
            rounds: self.rounds,
            systems: systems.collect::<Result<_>>()?,
            rows: Vec::new(),
            failures: Vec::new(),
            interrupted: false,
        })
    }

    fn in_mounts(&self, bar: &ProgressBar, results: &mut Results) -> Result<()> {
        for work in self.works {
            if self.interrupt.asked() {
                break;
            }
            bar.set_message(format!("layers of {}", work.name));
            let layers = self.ground.layers(work.layers)?;
            for system in self.systems {
                let prepared = system.prepare(&layers, &self.ground.round()?);
                prepared.with_context(|| format!("{} cannot use the layers", system.name()))?;
            }
            warm_layers(self.ground, work.layers)?;
            let row = Row {
                work: work.name,
                title: work.title,
                target: work.target,
                unit: Unit::Seconds,
                samples: Vec::new(),
            };
            let once = |system: &dyn System| self.run_once(work, system).map(Some);
            self.row(row, self.rounds, bar, results, once);
        }
        Ok(())
    }

    fn by_containerd(&self, bar: &ProgressBar, results: &mut Results) -> Result<()> {
        bar.set_message("containerd imports the image");
        let snapshotters = self.systems.iter();
        let snapshotters = snapshotters.filter_map(|system| system.snapshotter());
        let snapshotters: Vec<_> = snapshotters.collect();
        let mut stage = Stage::start(self.ground, &snapshotters, &self.interrupt)?;
        for work in self.container_works {
            if self.interrupt.asked() {
                break;
            }
            let row = Row {
                work: work.name,
                title: work.title,
                target: work.target,
                unit: work.unit,
                samples: Vec::new(),
            };
            let once = |system: &dyn System| match system.snapshotter() {
                Some(snapshotter) => (work.run)(&mut stage, &snapshotter),
                None => Ok(None),
            };
            self.row(row, self.rounds.min(work.rounds), bar, results, once);
        }
        Ok(())
    }

    /// Fills a row. `once` does the work by one system once, and gives what it measured, if it can be
    /// measured there.
    fn row(
        &self,
        mut row: Row,
        rounds: usize,
        bar: &ProgressBar,
        results: &mut Results,
        mut once: impl FnMut(&dyn System) -> Result<Option<f64>>,
    ) {
        let count = self.systems.len();
        row.samples = vec![Samples::default(); count];
        let mut failed = vec![false; count];
        // Nobody is always the first.
        let turns = (0..rounds).flat_map(|round| (0..count).map(move |turn| (round, turn)));
        for (round, turn) in turns {
            if self.interrupt.asked() {
                break;
            }
            let number = (round + turn) % count;
            let system = &*self.systems[number];
            let (work, name) = (row.work, system.name());
            bar.set_message(format!("{work}, {name}, round {}", round + 1));
            if !failed[number] {
                match once(system) {
                    Ok(Some(sample)) => row.samples[number].add(sample),
                    Ok(None) => {}
                    Err(error) => {
                        failed[number] = true;
                        row.samples[number] = Samples::default();
                        let failure = format!("{work}, {name}: {error:#}");
                        bar.println(format!("FAILED: {failure}"));
                        (self.told)(&format!("FAILED: {failure}"));
                        results.failures.push(failure);
                    }
                }
            }
            bar.inc(1);
        }
        (self.told)(&results.line(&row));
        results.rows.push(row);
    }

    /// One work by one system once: the seconds that it took, if its result is right.
    fn run_once(&self, work: &Work, system: &dyn System) -> Result<f64> {
        let layers = self.ground.layers(work.layers)?;
        let round = self.ground.round()?;
        let mount = || system.mount(&layers, &round).context("cannot mount");
        let path = round.mount();
        let place = Place {
            ground: self.ground,
            layers: work.layers,
            root: &path,
        };
        let input = (work.prepare)(&place)?;
        let (mounted, outcome, seconds) = timed(work, &place, &input, mount)?;
        let (found, wanted) = (outcome, input.expected);
        ensure!(
            found == wanted,
            "wrong result: {found:?}, but it has to be {wanted:?}"
        );
        mounted.unmount()?;
        if let Some(check) = work.check {
            let mounted = system.mount(&layers, &round).context("cannot remount")?;
            check(&place, &input).context("wrong after a remount")?;
            mounted.unmount()?;
        }
        Ok(seconds)
    }
}

/// Brings the caches into the state that the work wants, and does it.
fn timed(
    work: &Work,
    place: &Place,
    input: &Input,
    mount: impl Fn() -> Result<Mounted>,
) -> Result<(Mounted, Outcome, f64)> {
    rustix::fs::sync();
    if work.cache == Cache::Unmounted {
        let start = Instant::now();
        let mounted = mount()?;
        let outcome = (work.run)(place, input)?;
        return Ok((mounted, outcome, start.elapsed().as_secs_f64()));
    }
    let mounted = mount()?;
    match work.cache {
        Cache::Cold => drop_caches()?,
        Cache::Warm => drop((work.run)(place, input)?),
        Cache::Fresh | Cache::Unmounted => {}
    }
    let start = Instant::now();
    let outcome = (work.run)(place, input)?;
    let took = outcome.took.unwrap_or_else(|| start.elapsed());
    Ok((mounted, outcome, took.as_secs_f64()))
}

/// Reads what the layers hold once, so that the first system finds the host's caches as the others
/// do.
fn warm_layers(ground: &Ground, layers: Layers) -> Result<()> {
    for layer in ground.layers(layers)? {
        for entry in walkdir::WalkDir::new(layer) {
            let entry = entry?;
            if entry.file_type().is_file() {
                std::io::copy(
                    &mut std::fs::File::open(entry.path())?,
                    &mut std::io::sink(),
                )?;
            }
        }
    }
    Ok(())
}

fn progress(steps: usize) -> Result<ProgressBar> {
    let bar = ProgressBar::new(steps as u64);
    let style = "{elapsed_precise} {wide_bar} {pos}/{len}, {eta} left: {msg}";
    bar.set_style(ProgressStyle::with_template(style)?);
    Ok(bar)
}

impl Results {
    /// The medians of a row, in the order of the systems.
    pub fn medians(&self, work: &str) -> Option<Vec<Option<f64>>> {
        let row = self.rows.iter().find(|row| row.work == work)?;
        Some(row.samples.iter().map(Samples::median).collect())
    }

    /// The ratio that a row's target is about, for one system.
    pub fn ratio(&self, row: &Row, system: usize) -> Option<f64> {
        let own = row.samples.get(system)?.median()?;
        let base = match row.target {
            Target::Itself(work, _) => self.medians(work)?.get(system).copied()?,
            Target::Absolute(_) => None,
            Target::Overlayfs(_) | Target::None => {
                let overlayfs = self
                    .systems
                    .iter()
                    .position(|(name, _)| name == "overlayfs")?;
                row.samples.get(overlayfs)?.median()
            }
        };
        Some(own / base?)
    }

    /// A row's medians in one line.
    fn line(&self, row: &Row) -> String {
        let mut line = row.work.to_owned();
        for ((name, _), samples) in self.systems.iter().zip(&row.samples) {
            if let Some(median) = samples.median() {
                let _ = write!(line, "  {name} {}", row.unit.shown(median));
            }
        }
        line
    }

    /// All failures as one text, if there are any.
    pub fn complaint(&self) -> Option<String> {
        if self.failures.is_empty() {
            return None;
        }
        let mut text = "these results are wrong:".to_owned();
        for failure in &self.failures {
            let _ = write!(text, "\n  {failure}");
        }
        Some(text)
    }
}

impl Target {
    /// The number, if there is one.
    pub fn limit(self) -> Option<f64> {
        match self {
            Target::Overlayfs(limit) | Target::Itself(_, limit) | Target::Absolute(limit) => {
                Some(limit)
            }
            Target::None => None,
        }
    }
}
