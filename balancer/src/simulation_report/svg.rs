//! Pictures as SVG text: made here, with no script and nothing fetched. Colours are classes of [`STYLE`], so that a picture follows
//! light and dark wherever it stands.

use std::fmt::Write;

/// Colours are those of Okabe and Ito, who chose them to be told apart with any colour vision; shapes and words say the same.
pub(super) const STYLE: &str = "\
:root,svg{--ink:#17212c;--soft:#566473;--rule:#d9dfe6;--panel:#fff;--ours:#0072b2;--peer:#8a97a5;--peer-soft:#c3ccd5;\
--limit:#d55e00;--mb0:#e69f00;--mb1:#56b4e9;--on-mb:#17212c;\
--h0:#08519c;--h1:#4a90c8;--h2:#a6cbe3;--h3:#eef1f4;--h4:#fdd9a8;--h5:#f2a04e;--h6:#d9661f;--h7:#8c2d04}
@media (prefers-color-scheme:dark){:root,svg{--ink:#e3e9f0;--soft:#9fadbc;--rule:#2b3744;--panel:#161f29;--ours:#56b4e9;\
--peer:#7d8b99;--peer-soft:#465462;--limit:#ff9d5c;--mb0:#e69f00;--mb1:#56b4e9;--on-mb:#10161d;\
--h0:#7fc4ff;--h1:#3f86bd;--h2:#2a567a;--h3:#232d38;--h4:#6b4a22;--h5:#b5741f;--h6:#f09b3c;--h7:#ffd79a}}
@media print{:root,svg{--ink:#000;--soft:#333;--rule:#bbb;--panel:#fff;--ours:#0072b2;--peer:#777;--peer-soft:#bbb;--limit:#b34700;\
--mb0:#e69f00;--mb1:#56b4e9;--on-mb:#000;\
--h0:#08519c;--h1:#4a90c8;--h2:#a6cbe3;--h3:#eef1f4;--h4:#fdd9a8;--h5:#f2a04e;--h6:#d9661f;--h7:#8c2d04}}
svg{font-family:ui-sans-serif,system-ui,\"DejaVu Sans\",sans-serif;print-color-adjust:exact;-webkit-print-color-adjust:exact}
svg text{font-size:11px;fill:var(--soft)}svg .ink{fill:var(--ink)}svg .bold{font-weight:600;fill:var(--ink)}
svg .small{font-size:9.5px}svg .on{fill:var(--on-mb)}
svg .rule{stroke:var(--rule);stroke-width:1;shape-rendering:crispEdges}svg .limit{stroke:var(--limit);stroke-width:1.5;stroke-dasharray:5 3}
svg .limit-text{fill:var(--limit)}
svg .ours{fill:var(--ours)}svg .peer{fill:var(--peer)}svg .ours-soft{fill:var(--ours);opacity:.35}svg .peer-soft{fill:var(--peer-soft)}
svg .ours-line{stroke:var(--ours);fill:none;stroke-width:2.4}svg .peer-line{stroke:var(--peer-soft);fill:none;stroke-width:1.1}
svg .next-line{stroke:var(--limit);fill:none;stroke-width:1.8;stroke-dasharray:6 3}svg .next{fill:var(--limit)}
svg .mb0{fill:var(--mb0)}svg .mb1{fill:var(--mb1)}svg .edge{stroke:var(--panel);stroke-width:1}
svg .h0{fill:var(--h0)}svg .h1{fill:var(--h1)}svg .h2{fill:var(--h2)}svg .h3{fill:var(--h3)}svg .h4{fill:var(--h4)}\
svg .h5{fill:var(--h5)}svg .h6{fill:var(--h6)}svg .h7{fill:var(--h7)}";

/// Text between tags or in a quoted attribute.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// Where a text stands at its point.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A picture that is being drawn.
pub(super) struct Svg {
    width: f64,
    height: f64,
    title: String,
    body: String,
}

impl Svg {
    /// An empty one. The title is what a screen reader says.
    pub(super) fn new(width: f64, height: f64, title: impl Into<String>) -> Self {
        Self { width, height, title: title.into(), body: String::new() }
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        self.body.write_fmt(text).expect("a string takes everything");
    }

    pub(super) fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64), hint: &str) {
        let size =
            format!("x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\"", width.max(0.0));
        match hint {
            "" => self.push(format_args!("<rect class=\"{class}\" {size}/>")),
            hint => self
                .push(format_args!("<rect class=\"{class}\" {size}><title>{}</title></rect>", escape(hint))),
        }
    }

    pub(super) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.push(format_args!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    pub(super) fn circle(&mut self, class: &str, (x, y): (f64, f64), radius: f64) {
        self.push(format_args!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>"));
    }

    pub(super) fn path(&mut self, class: &str, data: &str) {
        self.push(format_args!("<path class=\"{class}\" d=\"{data}\"/>"));
    }

    pub(super) fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.push(format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
            escape(text)
        ));
    }

    /// As part of a page that has [`STYLE`].
    pub(super) fn inline(self) -> String {
        self.whole("")
    }

    /// As a file of its own.
    pub(super) fn file(self) -> String {
        let style = format!("<style>{STYLE}\nsvg{{background:var(--panel)}}</style>");
        self.whole(&style) + "\n"
    }

    fn whole(self, style: &str) -> String {
        let Self { width, height, title, body } = self;
        let title = escape(&title);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             role=\"img\" aria-label=\"{title}\"><title>{title}</title>{style}{body}</svg>"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_stays_text() {
        let mut svg = Svg::new(10.0, 10.0, "a<b");
        svg.text("ink", (0.0, 0.0), Anchor::Start, "<script>\"&");
        let text = svg.inline();
        assert!(
            text.contains("&lt;script&gt;&quot;&amp;") && text.contains("aria-label=\"a&lt;b\""),
            "{text}"
        );
    }
}
