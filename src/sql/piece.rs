//! Pieces of a text of SQL, and positions in it.

/// A position in a text: line and column, counted from 1; columns are characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

impl Place {
    pub const START: Self = Self { line: 1, column: 1 };

    /// Converts a position within a piece to a position in the text that contains the piece.
    pub fn within(self, piece: Self) -> Self {
        let column = if self.line == 1 { self.column + piece.column - 1 } else { self.column };
        Self { line: self.line + piece.line - 1, column }
    }
}

/// A statement without its semicolon, or a dot command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    pub text: &'a str,
    pub place: Place,
    /// True for a dot command such as `.tables`.
    pub dot: bool,
}
