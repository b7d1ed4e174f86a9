//! Lines of several kinds beneath one another, as of a tree: the columns line up among all lines of one kind at one depth.

use crate::table::{Cell, Fit, Table};

/// What kind of line it is, and so which columns it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A card, or a parent that is none, on a host with PCI functions: name, what it is, driver, NUMA node, use.
    Card,
    /// A parent on a host without: name, driver, NUMA node, use.
    Parent,
    /// A function of a card: address, what it is, driver, use.
    Function,
    /// A VF: address, number, driver, settings, holder.
    Vf,
    /// Free VFs: addresses, how many, driver.
    Run,
    /// An mdev: UUID, type, state, holder.
    Mdev,
}

impl Kind {
    fn fits(self) -> &'static [Fit] {
        match self {
            Self::Card => &[Fit::Keep, Fit::Hint, Fit::Shorten, Fit::Keep, Fit::Wrap],
            Self::Parent => &[Fit::Keep, Fit::Shorten, Fit::Keep, Fit::Wrap],
            Self::Function => &[Fit::Keep, Fit::Hint, Fit::Shorten, Fit::Wrap],
            Self::Vf => &[Fit::Keep, Fit::Keep, Fit::Shorten, Fit::Shorten, Fit::Shorten],
            Self::Run => &[Fit::Keep, Fit::Keep, Fit::Shorten],
            Self::Mdev => &[Fit::Keep, Fit::Shorten, Fit::Keep, Fit::Shorten],
        }
    }
}

/// The lines, in order.
#[derive(Debug, Default)]
pub struct Outline {
    tables: Vec<(Kind, usize, Table)>,
    /// Of each line, the place of its table among those.
    order: Vec<usize>,
}

impl Outline {
    /// Adds a line, moved to the right by `indent`.
    pub fn row<const N: usize>(&mut self, kind: Kind, indent: usize, cells: [Cell; N]) {
        let place =
            self.tables.iter().position(|(of, depth, _)| (*of, *depth) == (kind, indent)).unwrap_or_else(|| {
                self.tables.push((kind, indent, Table::new(indent, kind.fits())));
                self.tables.len() - 1
            });
        if let Some((_, _, table)) = self.tables.get_mut(place) {
            table.row(cells);
            self.order.push(place);
        }
    }

    /// All of it as text.
    pub fn render(&self, width: Option<usize>) -> String {
        let mut rows: Vec<_> = self.tables.iter().map(|(_, _, table)| table.rows(width).into_iter()).collect();
        self.order.iter().filter_map(|place| rows.get_mut(*place)?.next()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_kind_line_up_and_keep_their_order() {
        let mut lines = Outline::default();
        let mdev = |uuid: &str, owner: &str| [uuid.into(), "t".into(), "ok".into(), Cell::from(owner)];
        lines.row(Kind::Run, 2, ["a … b".into(), "2 free VFs".into(), "ice".into()]);
        lines.row(Kind::Mdev, 2, mdev("one", "vm1"));
        lines.row(Kind::Run, 2, ["a long one … b".into(), "3 free VFs".into(), "-".into()]);
        lines.row(Kind::Mdev, 2, mdev("three", "vm2"));
        lines.row(Kind::Mdev, 4, mdev("deeper", "vm3"));
        let expected = [
            "  a … b           2 free VFs  ice",
            "  one    t  ok  vm1",
            "  a long one … b  3 free VFs  -",
            "  three  t  ok  vm2",
            "    deeper  t  ok  vm3",
            "",
        ];
        assert_eq!(lines.render(None), expected.join("\n"));
        assert_eq!(Outline::default().render(None), "");
    }
}
