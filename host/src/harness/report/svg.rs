//! Drawings of lines, boxes, circles and words. Colours are classes, which the page's style sheet
//! gives a light and a dark meaning.

use std::fmt::Write;

/// Text as HTML and SVG take it, in elements and in attributes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            _ => escaped.push(letter),
        }
    }
    escaped
}

/// Where a text stands against its point.
#[derive(Clone, Copy, Debug)]
pub enum Anchor {
    /// Begins there.
    Start,
    /// Has its middle there.
    Middle,
    /// Ends there.
    End,
}

/// A drawing of `width` by `height` units, one of which is a pixel at full size.
#[derive(Clone, Debug)]
pub struct Svg {
    name: &'static str,
    title: String,
    description: String,
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    /// An empty drawing; title and description are for those who cannot see it.
    pub fn new(
        name: &'static str,
        title: &str,
        description: &str,
        width: f64,
        height: f64,
    ) -> Self {
        Self {
            name,
            title: title.to_owned(),
            description: description.to_owned(),
            width,
            height,
            body: String::new(),
        }
    }

    /// What it is called, in the page and as a file.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its title.
    pub fn title(&self) -> &str {
        &self.title
    }

    fn push(&mut self, arguments: std::fmt::Arguments<'_>) {
        self.body.write_fmt(arguments).expect("a string takes all");
        self.body.push('\n');
    }

    /// A line between two points.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        self.push(format_args!(
            "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    /// A box, which says `title` when pointed at.
    pub fn rect(&mut self, class: &str, at: (f64, f64), size: (f64, f64), title: &str) {
        self.push(format_args!(
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\">{}\
             </rect>",
            at.0,
            at.1,
            size.0,
            size.1,
            title_element(title)
        ));
    }

    /// A circle, which says `title` when pointed at.
    pub fn circle(&mut self, class: &str, centre: (f64, f64), radius: f64, title: &str) {
        self.push(format_args!(
            "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius:.1}\">{}</circle>",
            centre.0,
            centre.1,
            title_element(title)
        ));
    }

    /// A square on its corner, which says `title` when pointed at.
    pub fn diamond(&mut self, class: &str, centre: (f64, f64), radius: f64, title: &str) {
        let (x, y) = centre;
        self.push(format_args!(
            "<path class=\"{class}\" d=\"M{:.1} {y:.1} L{x:.1} {:.1} L{:.1} {y:.1} L{x:.1} {:.1} \
             Z\">{}</path>",
            x - radius,
            y - radius,
            x + radius,
            y + radius,
            title_element(title)
        ));
    }

    /// A line of text whose base line goes through the point.
    pub fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        self.turned_text(class, at, anchor, 0.0, text);
    }

    /// The same, turned around its point by degrees.
    pub fn turned_text(
        &mut self,
        class: &str,
        at: (f64, f64),
        anchor: Anchor,
        degrees: f64,
        text: &str,
    ) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let (x, y) = at;
        let turn = match degrees {
            0.0 => String::new(),
            _ => format!(" transform=\"rotate({degrees:.1} {x:.1} {y:.1})\""),
        };
        self.push(format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\"{anchor}{turn}>{}</text>",
            escape(text)
        ));
    }

    /// As part of a page whose style sheet has the classes.
    pub fn inline(&self) -> String {
        self.with_style("")
    }

    /// As a file of its own.
    pub fn file(&self, style: &str) -> String {
        self.with_style(&format!("<style>\n{style}</style>\n"))
    }

    fn with_style(&self, style: &str) -> String {
        let Self { name, width, height, .. } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" id=\"plot-{name}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" \
             aria-labelledby=\"{name}-title {name}-description\">\n\
             <title id=\"{name}-title\">{}</title>\n\
             <desc id=\"{name}-description\">{}</desc>\n{style}{}</svg>\n",
            escape(&self.title),
            escape(&self.description),
            self.body
        )
    }
}

fn title_element(title: &str) -> String {
    format!("<title>{}</title>", escape(title))
}
