//! From a list to items ready to be drawn: every line checked first, in memory that does not hold the list.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::args::ListArgs;
use super::place::Place;
use super::shard::Shard;
use crate::cli::exit::{Exit, Failure, OrExit};
use crate::cli::fast;
use crate::cli::session::Session;
use crate::cli::slug::slug;
use crate::cli::template::Values;
use crate::cli::within::Within;
use crate::files;
use crate::picture_in::Pictures;
use crate::request::list::{Fault, Item};
use crate::request::{Defaults, Draft, Request};

/// As many problems of a list are shown.
const SHOWN: usize = 20;

/// One picture to be drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// In the whole list, counting from 0.
    pub index: u64,
    pub line: u64,
    pub id: Option<String>,
    pub request: Request,
    pub path: PathBuf,
}

/// What completes the items of a list.
pub struct Planner<'a> {
    pub defaults: Defaults,
    /// What the flags say; its seed is left out.
    pub flags: Draft,
    /// The seed of the first item, if that has none; the next one's is one more.
    pub base_seed: u64,
    pub place: Place<'a>,
    /// Those that items start from.
    pub pictures: Arc<Pictures>,
    /// As part of a file name.
    pub model: String,
    /// Chooses what items leave out, if they have to be drawn in some time.
    pub within: Option<Within<'a>>,
}

impl<'a> Planner<'a> {
    /// For items drawn with `session`, laid over the flags.
    pub fn new(session: &Session, args: &ListArgs, base_seed: u64, place: Place<'a>) -> Self {
        Self {
            defaults: session.defaults(),
            flags: Draft { seed: None, ..args.picture.draft() },
            base_seed,
            place,
            pictures: session.pictures.clone(),
            model: slug(session.name()),
            within: None,
        }
    }

    /// The item at `index`, complete.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn item(&self, index: u64, item: Item) -> Result<Planned, String> {
        let mut draft = item.draft.over(self.flags.clone());
        if draft.prompt.is_none() {
            return Err("it has no prompt".to_owned());
        }
        if draft.seed.is_none() {
            let seed = self.base_seed.checked_add(index);
            draft.seed = Some(seed.ok_or("its seed, --seed and its index together, is too large")?);
        }
        let request = self.request(draft).map_err(|failure| format!("{:#}", failure.error))?;
        let values = Values {
            seed: request.seed,
            index: index + 1,
            slug: &slug(&request.prompt),
            model: &self.model,
            id: item.id.as_deref().unwrap_or_default(),
        };
        let path = self.place.path(item.output.as_deref(), &values).map_err(|error| format!("{error:#}"))?;
        Ok(Planned { index, line: item.line, id: item.id, request, path })
    }

    fn request(&self, draft: Draft) -> Result<Request, Failure> {
        match &self.within {
            Some(within) => within.choose(&draft, &Draft::default()),
            None => {
                let size_of = |path: &Path| self.pictures.size(path);
                fast::with_lora(draft)?.resolve(&self.defaults, size_of).or_exit(Exit::Usage)
            }
        }
    }
}

/// A list that has been read whole.
#[derive(Debug, Default)]
pub struct Plan {
    /// Items in the list.
    pub items: u64,
    /// Fingerprints of the shard's own lines, in order.
    pub own: Vec<u64>,
    /// Folders of the shard's pictures.
    pub folders: BTreeSet<PathBuf>,
    /// The line of the first item whose seed depends on `--seed`.
    pub unseeded: Option<u64>,
}

/// The first problems of a list and the number of all.
#[derive(Debug, Default)]
pub struct Problems {
    shown: Vec<String>,
    count: usize,
}

impl Problems {
    pub fn add(&mut self, line: u64, message: &str) {
        self.count += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(format!("line {line}: {message}"));
        }
    }

    /// # Errors
    /// When there is one: names the list and each line.
    pub fn none(self, list: &str) -> Result<(), Failure> {
        match self.count {
            0 => Ok(()),
            1 => Err(Failure::usage(format!("{list}: {}", self.shown[0]))),
            count => {
                let more = match count - self.shown.len() {
                    0 => String::new(),
                    more => format!("\n  … and {more} more"),
                };
                let shown = self.shown.join("\n  ");
                Err(Failure::usage(format!("{list}: {count} lines can't be drawn\n  {shown}{more}")))
            }
        }
    }
}

/// Reads a whole list and checks every item; `own` looks closer at those of the shard.
///
/// # Errors
/// Names every line that is wrong, or why the list can't be read.
pub fn plan(
    name: &str,
    list: impl Iterator<Item = Result<Item, Fault>>,
    planner: &Planner<'_>,
    shard: Shard,
    mut own: impl FnMut(&Planned) -> Result<(), String>,
) -> Result<Plan, Failure> {
    let mut plan = Plan::default();
    let mut problems = Problems::default();
    // Hashes instead of names: 16 bytes an item.
    let mut names: Vec<(u64, u32)> = Vec::new();
    // Every folder that a file is in, and the first line that needs it.
    let mut folders: HashMap<u64, u32> = HashMap::new();
    for item in list {
        let index = plan.items;
        plan.items += 1;
        let item = match item {
            Ok(item) => item,
            Err(Fault::Line(error)) => {
                problems.add(error.line, &error.message);
                continue;
            }
            Err(Fault::Read(error)) => {
                return Err(Failure::usage(format!("cannot read the list {name}: {error}")));
            }
        };
        let (line, fingerprint) = (item.line, item.fingerprint);
        if item.draft.seed.is_none() {
            plan.unseeded.get_or_insert(line);
        }
        let planned = match planner.item(index, item) {
            Ok(planned) => planned,
            Err(message) => {
                problems.add(line, &message);
                continue;
            }
        };
        let short_line = u32::try_from(line).unwrap_or(u32::MAX);
        names.push((hash(&planned.path), short_line));
        for folder in planned.path.ancestors().skip(1) {
            // Those around a known folder are known.
            if folders.contains_key(&hash(folder)) {
                break;
            }
            folders.insert(hash(folder), short_line);
        }
        if shard.has(index) {
            plan.own.push(fingerprint);
            let folder = files::folder_of(&planned.path);
            if !plan.folders.contains(folder) {
                plan.folders.insert(folder.to_owned());
            }
            if let Err(message) = own(&planned) {
                problems.add(line, &message);
            }
        }
    }
    names.sort_unstable();
    let mut twice: Vec<(u32, u32)> = names
        .chunk_by(|a, b| a.0 == b.0)
        .flat_map(|same| same[1..].iter().map(|(_, line)| (*line, same[0].1)))
        .collect();
    twice.sort_unstable();
    for (line, first) in twice {
        problems.add(line.into(), &format!("its file name is also that of line {first}"));
    }
    let mut blocked: Vec<(u32, u32)> =
        names.iter().filter_map(|(name, line)| Some((*line, *folders.get(name)?))).collect();
    blocked.sort_unstable();
    for (line, other) in blocked {
        problems.add(line.into(), &format!("its file would be where line {other} needs a folder"));
    }
    problems.none(name)?;
    if plan.items == 0 {
        return Err(Failure::usage(format!("the list {name} has no items")));
    }
    Ok(plan)
}

/// Equal for names that are one file; on systems that ignore case, without it.
fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    if cfg!(any(windows, target_os = "macos")) {
        path.to_string_lossy().to_lowercase().hash(&mut hasher);
    } else {
        path.hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::list::{Format, List};
    use crate::request::{Sampler, Schedule};

    fn planner(pattern: &str) -> Planner<'static> {
        Planner {
            defaults: Defaults {
                width: 64,
                height: 64,
                steps: 20,
                guidance_scale: 3.0,
                sampler: Sampler::Dpmpp2m,
                schedule: Schedule::Trailing,
            },
            flags: Draft { steps: Some(5), ..Draft::default() },
            base_seed: 100,
            place: Place::new(Path::new("out"), pattern, false).unwrap(),
            pictures: Arc::default(),
            model: "pocket".to_owned(),
            within: None,
        }
    }

    fn own(list: &str, pattern: &str, shard: Shard) -> Result<(Plan, Vec<Planned>), String> {
        let mut own = Vec::new();
        let list = List::new(list.as_bytes(), Format::Jsonl);
        let plan = plan("list", list, &planner(pattern), shard, |planned| {
            own.push(planned.clone());
            Ok(())
        });
        plan.map(|plan| (plan, own)).map_err(|failure| failure.error.to_string())
    }

    #[test]
    fn seeds_and_names_are_those_of_the_whole_list() {
        let list = "{\"prompt\":\"a\"}\n\n{\"prompt\":\"b\",\"seed\":7,\"steps\":2}\n{\"prompt\":\"c\"}\n";
        let (plan, whole) = own(list, "{index:02}-{seed}.png", Shard::WHOLE).unwrap();
        assert_eq!((plan.items, plan.unseeded), (3, Some(1)));
        let told: Vec<_> =
            whole.iter().map(|item| (item.line, item.request.seed, item.request.steps)).collect();
        assert_eq!(told, [(1, 100, 5), (3, 7, 2), (4, 102, 5)]);
        assert_eq!(whole[2].path, Path::new("out/03-102.png"));
        let mut parts = Vec::new();
        for shard in ["1/2", "2/2"] {
            parts.extend(own(list, "{index:02}-{seed}.png", shard.parse().unwrap()).unwrap().1);
        }
        parts.sort_by_key(|item| item.index);
        assert_eq!(parts, whole);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let list = "{\"prompt\":\"a\"}\n{\"prompt\":\"a\",\"width\":65}\n{}\n{\"prompt\":\"a\"}\n{\"prompt\":\"a\",\"output\":\"../x.png\"}\nx\n";
        let message = own(list, "{slug}.png", Shard::WHOLE).unwrap_err();
        for part in [
            "list: 5 lines",
            "line 2: width 65",
            "line 3: it has no prompt",
            "line 4: its file name is also that of line 1",
            "line 5: the file name '../x.png' leads out",
            "line 6: expected",
        ] {
            assert!(message.contains(part), "no '{part}' in {message}");
        }
        let message = own(&"{}\n".repeat(1000), "{slug}.png", Shard::WHOLE).unwrap_err();
        assert!(message.ends_with("… and 980 more") && message.lines().count() == 22, "{message}");
        assert_eq!(own("\n", "{slug}.png", Shard::WHOLE).unwrap_err(), "the list list has no items");
    }

    #[test]
    fn a_file_where_another_line_needs_a_folder_is_refused() {
        for lines in [["a", "a/b.png"], ["a/b.png", "a"], ["x/y", "x/y/z/a.png"], ["./a", "a//b"]] {
            let list = lines.map(|name| format!("{{\"prompt\":\"p\",\"output\":\"{name}\"}}\n")).concat();
            let message = own(&list, "{index}.png", Shard::WHOLE).unwrap_err();
            assert!(message.contains("needs a folder"), "{lines:?}: {message}");
        }
        let list = "{\"prompt\":\"p\",\"output\":\"a/b\"}\n{\"prompt\":\"p\",\"output\":\"a/c\"}\n";
        assert!(own(list, "{index}.png", Shard::WHOLE).is_ok());
    }

    #[test]
    fn a_seed_beyond_the_largest_is_refused() {
        let list = List::new(&b"{\"prompt\":\"a\"}\n{\"prompt\":\"b\"}"[..], Format::Jsonl);
        let planner = Planner { base_seed: u64::MAX, ..planner("{index}.png") };
        let failure = plan("list", list, &planner, Shard::WHOLE, |_| Ok(())).unwrap_err();
        assert!(failure.error.to_string().contains("line 2: its seed"));
    }
}
