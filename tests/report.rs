//! The report as its readers meet it: written by the command, shown by a browser.

use std::fs;
use std::path::Path;
use std::process::Command;

const SAMPLE: &str = "host/src/harness/report/sample.json";

fn report(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_host"))
        .arg("report")
        .args(arguments)
        .output()
        .expect("the command starts");
    let text = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    (output.status.code(), text)
}

/// A run's folder with its report.
fn reported() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(SAMPLE, folder.path().join("results.json")).unwrap();
    let (code, told) = report(&[folder.path().to_str().unwrap()]);
    assert_eq!(code, Some(0), "{told}");
    folder
}

#[test]
fn bad_arguments_and_files_exit_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let readme = folder.path().join("README.md");
    fs::write(&readme, "no markers").unwrap();
    let readme = readme.to_str().unwrap();
    for (arguments, problem) in [
        (&[][..], "DIR"),
        (&[dir], "neither it nor a folder in it has a results.json"),
        (&["--readme", readme, "--folder", dir], "there are no expectations"),
        (&["--readme", "no/such/README.md"], "no/such/README.md: cannot be read"),
    ] {
        let (code, told) = report(arguments);
        assert_eq!(code, Some(2), "{told}");
        assert!(told.contains(problem), "{told}");
    }
}

fn browser() -> Option<&'static str> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let starts = |name: &&&str| Command::new(name).arg("--version").output().is_ok();
    names.iter().find(starts).copied()
}

/// What the page's document is after its scripts have run.
fn dom(browser: &str, page: &Path, profile: &Path) -> String {
    let output = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1200,900",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("the browser starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Puts into the document's title how large each plot is and how many marks of its kind it shows.
const MEASURE: &str = "<script>
const plots = [['ratio', '.dot'], ['roofline', '.after'], ['phases', '.phase']];
document.title = plots.map(([name, mark]) => {
  const plot = document.getElementById('plot-' + name);
  const { width, height } = plot.getBoundingClientRect();
  const shown = [...plot.querySelectorAll(mark)].filter(mark => {
    const { width, height } = mark.getBoundingClientRect();
    return width > 0 && height > 0 && getComputedStyle(mark).fill !== 'rgb(0, 0, 0)';
  });
  return [name, width > 600, height > 200, shown.length].join(' ');
}).join(', ');
</script>";

#[test]
fn a_browser_shows_the_plots() {
    let Some(browser) = browser() else {
        eprintln!("not checked: no Chromium is installed to show the page");
        return;
    };
    let folder = reported();
    let page = folder.path().join("report.html");
    let html = fs::read_to_string(&page).unwrap();
    fs::write(&page, html.replace("</body>", &format!("{MEASURE}</body>"))).unwrap();
    let dom = dom(browser, &page, &folder.path().join("profile"));
    let title = dom.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next());
    // Eleven ratios; ten pairs that do arithmetic, each drawn and in the key; bars and their key.
    let expected = "ratio true true 11, roofline true true 20, phases true true 62";
    assert_eq!(title, Some(expected), "{dom}");
}
