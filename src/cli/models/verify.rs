//! `pochade models verify`: pulled files against their hashes, and whether the model opens.

use super::super::exit::{Exit, Failure, OrExit};
use super::super::printer::{Printer, Verbosity};
use super::args::VerifyArgs;
use crate::checkpoint::Checkpoint;
use crate::hub::{self, Pulled};

/// Checks each model; the first that is damaged ends the run.
///
/// # Errors
/// Names the file that is damaged.
pub fn run(args: &VerifyArgs) -> Result<Exit, Failure> {
    let verbosity = if args.quiet { Verbosity::Quiet } else { Verbosity::Normal };
    let printer = Printer::new(verbosity, false);
    let models = if args.models.is_empty() {
        super::pulled()?
    } else {
        args.models.iter().map(|name| super::find(name)).collect::<Result<_, _>>()?
    };
    if models.is_empty() {
        printer.note("no model has been pulled");
    }
    for pulled in models {
        verify(&pulled, printer)?;
    }
    Ok(Exit::Done)
}

fn verify(pulled: &Pulled, printer: Printer) -> Result<(), Failure> {
    let mut count = 0;
    let (wrong, unknown) = hub::verify(pulled, &mut |_| count += 1)?;
    if !wrong.is_empty() {
        let names: Vec<String> = wrong.iter().map(|path| path.display().to_string()).collect();
        return Err(Failure::new(Exit::Model, format!("damaged or missing: {}", names.join(", "))).hint(
            format!("`pochade models remove {0}` and `pochade models pull {0}` fetch it anew", pulled.id),
        ));
    }
    for path in [&pulled.source, &pulled.native].into_iter().flatten() {
        Checkpoint::open(path).or_exit(Exit::Model)?;
    }
    let unknown = match unknown {
        0 => String::new(),
        some => format!(", {some} of them without a known hash"),
    };
    printer.status(&format!("{} at {}: {count} files{unknown}, all right", pulled.id, &pulled.commit[..12]));
    Ok(())
}
