//! What was measured, beside what was wanted.

/// Rows in the order they were measured.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    what: String,
    value: String,
    goal: Option<(String, bool)>,
}

impl Table {
    /// A figure without a goal.
    pub(crate) fn note(&mut self, what: &str, value: String) {
        self.rows.push(Row { what: what.to_owned(), value, goal: None });
    }

    /// A figure that must not be above `most`.
    pub(crate) fn goal(&mut self, what: &str, value: f64, most: f64, show: impl Fn(f64) -> String) {
        let goal = Some((format!("<= {}", show(most)), value <= most));
        self.rows.push(Row { what: what.to_owned(), value: show(value), goal });
    }

    /// Goals that were missed.
    pub(crate) fn missed(&self) -> usize {
        self.rows.iter().filter(|row| matches!(row.goal, Some((_, false)))).count()
    }

    /// To standard output, one line a row.
    pub(crate) fn print(&self) {
        for Row { what, value, goal } in &self.rows {
            match goal {
                Some((goal, met)) => {
                    println!("{what:<62} {value:>10}  {goal:>10}  {}", if *met { "met" } else { "MISSED" });
                }
                None => println!("{what:<62} {value:>10}"),
            }
        }
    }
}
