//! The EKS webhook's command line, as Go's flag packages read one.

use clap::ArgAction;

/// A flag of the EKS webhook that was given and means nothing here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// Without dashes.
    pub flag: &'static str,
    /// Why nothing is lost.
    pub why: &'static str,
}

/// Whether a flag of the table below needs a value, if none follows an equals sign.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Value,
    Nothing,
}

const LOGS: &str = "logs go to standard error alone; see --log-format and --log-level";

/// What the EKS webhook has beside what there is here too; most are its logging library's.
const IGNORED: [(&str, Takes, &str); 16] = [
    ("add_dir_header", Takes::Nothing, LOGS),
    ("alsologtostderr", Takes::Nothing, LOGS),
    ("alsologtostderrthreshold", Takes::Value, LOGS),
    (
        "enable-debugging-handlers",
        Takes::Nothing,
        "there are no unauthenticated debugging pages; see the metrics and rolecall-shim log-level debug",
    ),
    ("legacy_stderr_threshold_behavior", Takes::Nothing, LOGS),
    ("log_backtrace_at", Takes::Value, LOGS),
    ("log_dir", Takes::Value, LOGS),
    ("log_file", Takes::Value, LOGS),
    ("log_file_max_size", Takes::Value, LOGS),
    ("logtostderr", Takes::Nothing, LOGS),
    ("one_output", Takes::Nothing, LOGS),
    ("resync-period", Takes::Value, "the watches of the API server need no resynchronization"),
    ("skip_headers", Takes::Nothing, LOGS),
    ("skip_log_headers", Takes::Nothing, LOGS),
    ("stderrthreshold", Takes::Value, LOGS),
    ("vmodule", Takes::Value, "name modules in --log-level, as in info,rolecall_shim::cache=debug"),
];

/// Takes the flags of [`IGNORED`] out of `line`, and gives a known long flag with one dash its second.
pub(super) fn translate(command: &clap::Command, line: Vec<String>) -> (Vec<String>, Vec<Ignored>) {
    let is_subcommand = |word: &String| command.get_subcommands().any(|sub| sub.get_name() == word);
    if line.get(1).is_some_and(is_subcommand) {
        return (line, Vec::new());
    }
    let (mut kept, mut ignored) = (Vec::new(), Vec::new());
    let mut words = line.into_iter();
    kept.extend(words.next());
    while let Some(word) = words.next() {
        if word == "--" {
            kept.push(word);
            kept.extend(words);
            break;
        }
        let Some(bare) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            kept.push(word);
            continue;
        };
        let (name, has_value) = bare.split_once('=').map_or((bare, false), |(name, _)| (name, true));
        if let Some(&(flag, takes, why)) = IGNORED.iter().find(|(flag, ..)| *flag == name) {
            if takes == Takes::Value && !has_value {
                words.next();
            }
            ignored.push(Ignored { flag, why });
            continue;
        }
        let long = find(command, name);
        let is_long = long.is_some() && 1 < name.len();
        kept.push(if is_long { format!("--{bare}") } else { word.clone() });
        // The value of the next word is taken along, whatever it looks like.
        if is_long && !has_value && long.is_some_and(takes_next_word) {
            kept.extend(words.next());
        }
    }
    (kept, ignored)
}

fn find<'a>(command: &'a clap::Command, name: &str) -> Option<&'a clap::Arg> {
    command.get_arguments().find(|arg| {
        arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
    })
}

fn takes_next_word(arg: &clap::Arg) -> bool {
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    takes_value && !arg.is_require_equals_set()
}
