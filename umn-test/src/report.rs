// SPDX-License-Identifier: GPL-2.0

//! Prints the results of tests: for programs, as KTAP or JUnit, or for people.

use std::{
    process::ExitCode,
    time::{
        Duration,
        Instant, //
    }, //
};

use anstream::{
    print,
    println, //
};
use anstyle::{
    AnsiColor,
    Style, //
};

use crate::{
    exit,
    expect::{
        Failure,
        Outcome, //
    }, //
};

/// The formats.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// KTAP version 1, the dialect of TAP that the kernel's own tests print
    Tap,
    /// JUnit XML, for continuous integration; printed when all tests have ended
    Junit,
    /// A line for each test, coloured on a terminal unless NO_COLOR is set, and the totals
    Human,
    /// With --list: names only, as cargo-nextest expects them
    #[value(hide = true)]
    Terse,
}

/// The result of one test.
struct Entry {
    name: &'static str,
    result: Outcome<String>,
    time: Duration,
}

/// The results of a run. KTAP and human results are printed as they arrive.
pub struct Report {
    format: Format,
    verbose: bool,
    began: Instant,
    entries: Vec<Entry>,
}

impl Report {
    /// Starts the report of a run of `planned` tests. `verbose` adds the time of each.
    pub fn new(format: Format, verbose: bool, planned: usize) -> Self {
        if format == Format::Tap {
            println!("KTAP version 1\n1..{planned}");
        }
        Self {
            format,
            verbose,
            began: Instant::now(),
            entries: vec![],
        }
    }

    /// Adds the result of a test; a test that passed may have a note.
    pub fn add(&mut self, name: &'static str, result: Outcome<String>, time: Duration) {
        let entry = Entry { name, result, time };
        match self.format {
            Format::Tap => print!("{}", entry.as_tap(self.entries.len() + 1, self.verbose)),
            Format::Human => println!("{}", entry.as_line(self.verbose)),
            Format::Junit | Format::Terse => (),
        }
        self.entries.push(entry);
    }

    /// Ends the report; returns the exit status of the run.
    pub fn end(self) -> ExitCode {
        let of = |kind: fn(&Outcome<String>) -> bool| {
            let chosen = self.entries.iter().filter(|entry| kind(&entry.result));
            chosen.count()
        };
        let passed = of(Result::is_ok);
        let failed = of(|result| matches!(result, Err(Failure::Failed(_))));
        let skipped = of(|result| matches!(result, Err(Failure::Skipped(_))));
        let time = self.began.elapsed().as_secs_f64();
        match self.format {
            // The format of kselftest's totals.
            Format::Tap => println!(
                "# Totals: pass:{passed} fail:{failed} xfail:0 xpass:0 skip:{skipped} error:0"
            ),
            Format::Human => {
                if self.verbose {
                    println!("{time:.1} s");
                }
                println!("{passed} passed, {failed} failed, {skipped} skipped");
            }
            Format::Junit => {
                let tests = self.entries.len();
                println!(
                    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
                     <testsuites>\n\
                     <testsuite name=\"umn-test\" tests=\"{tests}\" failures=\"{failed}\" \
                     errors=\"0\" skipped=\"{skipped}\" time=\"{time:.3}\">"
                );
                for entry in &self.entries {
                    println!("{}", entry.as_xml());
                }
                println!("</testsuite>\n</testsuites>");
            }
            Format::Terse => (),
        }
        match (passed, failed, skipped) {
            (_, 1.., _) => ExitCode::FAILURE,
            (0, 0, 1..) => exit::skipped(),
            _ => ExitCode::SUCCESS,
        }
    }
}

impl Entry {
    /// The result line, preceded by diagnostics, as kselftest prints them.
    fn as_tap(&self, number: usize, verbose: bool) -> String {
        let name = self.name;
        let time = self.time.as_millis();
        let mut remarks = vec![];
        let mut before = String::new();
        let verdict = match &self.result {
            Ok(note) => {
                if !note.is_empty() {
                    remarks.push(one_line(note));
                }
                "ok"
            }
            Err(Failure::Failed(why)) => {
                for line in why.lines() {
                    before += &format!("# {name}: {line}\n");
                }
                "not ok"
            }
            Err(Failure::Skipped(why)) => {
                remarks.push(format!("SKIP {}", one_line(why)));
                "ok"
            }
        };
        if verbose {
            remarks.push(format!("{time} ms"));
        }
        let separator = if remarks.is_empty() { "" } else { " # " };
        let remarks = remarks.join(", ");
        format!("{before}{verdict} {number} {name}{separator}{remarks}\n")
    }

    /// A line for people.
    fn as_line(&self, verbose: bool) -> String {
        let (verdict, colour, detail) = match &self.result {
            Ok(note) => ("ok", AnsiColor::Green, note),
            Err(Failure::Failed(why)) => ("FAIL", AnsiColor::Red, why),
            Err(Failure::Skipped(why)) => ("SKIP", AnsiColor::Yellow, why),
        };
        let style = Style::new().fg_color(Some(colour.into()));
        let separator = if detail.is_empty() { "" } else { ": " };
        let time = if verbose {
            format!(" [{} ms]", self.time.as_millis())
        } else {
            String::new()
        };
        format!(
            "{style}{verdict}{style:#} {}{separator}{detail}{time}",
            self.name
        )
    }

    /// The element in JUnit XML.
    fn as_xml(&self) -> String {
        let content = match &self.result {
            Ok(note) if note.is_empty() => String::new(),
            Ok(note) => format!("<system-out>{}</system-out>", escaped(note)),
            Err(Failure::Failed(why)) => {
                let first = escaped(why.lines().next().unwrap_or_default());
                format!("<failure message=\"{first}\">{}</failure>", escaped(why))
            }
            Err(Failure::Skipped(why)) => format!("<skipped message=\"{}\"/>", escaped(why)),
        };
        format!(
            "<testcase classname=\"umn-test\" name=\"{}\" time=\"{:.3}\">{content}</testcase>",
            escaped(self.name),
            self.time.as_secs_f64()
        )
    }
}

/// Puts a text on one line, without the character that starts a directive in KTAP.
fn one_line(text: &str) -> String {
    text.trim().replace('\n', "; ").replace('#', "")
}

/// Escapes a text for XML, including attributes.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '&' => "&amp;".into(),
            '<' => "&lt;".into(),
            '>' => "&gt;".into(),
            '"' => "&quot;".into(),
            '\n' => "&#10;".into(),
            c if c.is_control() => "\u{fffd}".into(),
            c => c.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(result: Outcome<String>) -> Entry {
        Entry {
            name: "read",
            result,
            time: Duration::from_millis(1500),
        }
    }

    fn failed(why: &str) -> Outcome<String> {
        Err(Failure::Failed(why.into()))
    }

    fn skipped(why: &str) -> Outcome<String> {
        Err(Failure::Skipped(why.into()))
    }

    #[test]
    fn tap_has_one_line_for_a_result_and_its_remark() {
        let tap = |result, verbose| entry(result).as_tap(7, verbose);
        assert_eq!(tap(Ok("".into()), false), "ok 7 read\n");
        assert_eq!(
            tap(Ok("3 records".into()), true),
            "ok 7 read # 3 records, 1500 ms\n"
        );
        assert_eq!(
            tap(skipped("no\nKSM # here"), false),
            "ok 7 read # SKIP no; KSM  here\n"
        );
        assert_eq!(
            tap(failed("one\ntwo"), false),
            "# read: one\n# read: two\nnot ok 7 read\n"
        );
    }

    #[test]
    fn junit_escapes_what_tests_say() {
        assert_eq!(
            entry(failed("saw <a> & \"b\"\n\u{1}")).as_xml(),
            "<testcase classname=\"umn-test\" name=\"read\" time=\"1.500\">\
             <failure message=\"saw &lt;a&gt; &amp; &quot;b&quot;\">\
             saw &lt;a&gt; &amp; &quot;b&quot;&#10;\u{fffd}</failure></testcase>"
        );
    }

    #[test]
    fn a_run_fails_with_any_failure_and_is_skipped_only_as_a_whole() {
        let end = |results: Vec<Outcome<String>>| {
            let mut report = Report::new(Format::Terse, false, results.len());
            for result in results {
                report.add("test", result, Duration::ZERO);
            }
            format!("{:?}", report.end())
        };
        let is = |code: u8| format!("{:?}", ExitCode::from(code));
        let passed = || Ok(String::new());
        assert_eq!(end(vec![]), is(0));
        assert_eq!(end(vec![passed(), skipped("")]), is(0));
        assert_eq!(end(vec![skipped(""), failed(""), passed()]), is(1));
        assert_eq!(end(vec![skipped(""), skipped("")]), is(4));
    }
}
