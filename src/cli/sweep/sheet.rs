//! The contact sheet: pictures in rows and columns with labels; what is on it is decided elsewhere.

use font8x8::{BASIC_FONTS, LATIN_FONTS, UnicodeFonts};
use image::imageops::{self, FilterType};
use image::{GenericImage, Rgb, RgbImage};

/// Width and height of a letter, in pixels of the font.
const LETTER: u32 = 8;
/// Pixels around everything.
const MARGIN: u32 = 12;
/// How many signs a line of a row's label has at the most.
const LABEL: usize = 22;

const PAPER: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([20; 3]);

/// Rows of pictures under a heading and the columns' names.
pub struct Block {
    pub heading: String,
    pub rows: Vec<Row>,
}

pub struct Row {
    pub label: String,
    pub cells: Vec<Cell>,
}

pub struct Cell {
    /// None where it could not be drawn.
    pub picture: Option<RgbImage>,
    /// Two short lines.
    pub caption: [String; 2],
}

/// Where things are on a sheet.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Width and height of a picture's place.
    pub cell: u32,
    pub columns: u32,
    pub blocks: u32,
    /// In each block.
    pub rows: u32,
    /// Signs in the longest line of a row's label.
    pub label: u32,
}

impl Layout {
    /// Small places have small letters.
    fn scale(self) -> u32 {
        if self.cell >= 192 { 2 } else { 1 }
    }

    fn line(self) -> u32 {
        (LETTER + 2) * self.scale()
    }

    fn left(self) -> u32 {
        MARGIN + if self.label > 0 { self.label * LETTER * self.scale() + MARGIN } else { 0 }
    }

    fn row(self) -> u32 {
        self.cell + 2 * self.line() + MARGIN
    }

    fn block(self) -> u32 {
        2 * (self.line() + 4) + self.rows * self.row() + MARGIN
    }

    /// Width and height of the whole sheet.
    pub fn size(self) -> (u64, u64) {
        let width = u64::from(self.left()) + u64::from(self.columns) * u64::from(self.cell + MARGIN);
        (width, u64::from(MARGIN) + u64::from(self.blocks) * u64::from(self.block()))
    }
}

/// The length of a row's label as it is broken into lines.
pub fn label_width(label: &str) -> u32 {
    lines(label).iter().map(|line| line.chars().count()).max().unwrap_or(0) as u32
}

/// Draws the sheet; text that is wider than its place is cut.
pub fn draw(layout: Layout, columns: &[String], blocks: &[Block]) -> RgbImage {
    let (width, height) = layout.size();
    let mut sheet = RgbImage::from_pixel(width as u32, height as u32, PAPER);
    let (scale, line, cell) = (layout.scale(), layout.line(), layout.cell);
    let x_of = |column: usize| layout.left() + column as u32 * (cell + MARGIN);
    let mut y = MARGIN;
    for block in blocks {
        write(&mut sheet, &block.heading, (MARGIN, y), width as u32 - MARGIN, scale);
        y += line + 4;
        for (column, name) in columns.iter().enumerate() {
            write(&mut sheet, name, (x_of(column), y), x_of(column) + cell, scale);
        }
        y += line + 4;
        for row in &block.rows {
            for (number, text) in lines(&row.label).iter().enumerate() {
                write(&mut sheet, text, (MARGIN, y + number as u32 * line), layout.left(), scale);
            }
            for (column, place) in row.cells.iter().enumerate() {
                let x = x_of(column);
                if let Some(picture) = &place.picture {
                    let picture = fitted(picture, cell);
                    // Its place is large enough.
                    let _ = sheet.copy_from(&picture, x, y);
                }
                for (number, text) in place.caption.iter().enumerate() {
                    write(&mut sheet, text, (x, y + cell + 3 + number as u32 * line), x + cell, scale);
                }
            }
            y += layout.row();
        }
        y += MARGIN;
    }
    sheet
}

/// As large as the place allows: smaller pictures by a whole factor, so that their pixels stay what they are.
fn fitted(picture: &RgbImage, cell: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let longest = width.max(height).max(1);
    if longest <= cell {
        let factor = cell / longest;
        return imageops::resize(picture, width * factor, height * factor, FilterType::Nearest);
    }
    let side = |side: u32| (u64::from(side) * u64::from(cell) / u64::from(longest)).max(1) as u32;
    imageops::resize(picture, side(width), side(height), FilterType::Triangle)
}

/// Breaks at spaces where it can.
fn lines(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let line = lines.last_mut().map_or(0, |line| line.chars().count());
            let space = usize::from(line > 0);
            if line + space + word.len() <= LABEL {
                if let Some(line) = lines.last_mut() {
                    line.extend(" ".repeat(space).chars().chain(word));
                }
                break;
            }
            if line > 0 {
                lines.push(String::new());
                continue;
            }
            let rest = word.split_off(LABEL);
            if let Some(line) = lines.last_mut() {
                line.extend(word);
            }
            word = rest;
        }
    }
    lines
}

/// Writes one line from its upper left corner on, each pixel of the font `scale` wide, and nothing right of `end`.
fn write(sheet: &mut RgbImage, text: &str, (left, top): (u32, u32), end: u32, scale: u32) {
    let mut x = left;
    for letter in text.chars() {
        if x + LETTER * scale > end.min(sheet.width()) {
            return;
        }
        for (row, bits) in glyph(letter).iter().enumerate() {
            for column in (0..LETTER).filter(|column| bits & (1 << column) != 0) {
                for (dx, dy) in (0..scale).flat_map(|dx| (0..scale).map(move |dy| (dx, dy))) {
                    let (x, y) = (x + column * scale + dx, top + row as u32 * scale + dy);
                    if y < sheet.height() {
                        sheet.put_pixel(x, y, INK);
                    }
                }
            }
        }
        x += LETTER * scale;
    }
}

fn glyph(letter: char) -> [u8; 8] {
    let known = BASIC_FONTS.get(letter).or_else(|| LATIN_FONTS.get(letter));
    known.or_else(|| BASIC_FONTS.get('?')).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_and_letters_are_where_they_belong() {
        let layout = Layout { cell: 64, columns: 2, blocks: 1, rows: 1, label: 1 };
        let red = RgbImage::from_pixel(32, 16, Rgb([255, 0, 0]));
        let cell = |picture| Cell { picture, caption: ["I".to_owned(), String::new()] };
        let row = Row { label: "-".into(), cells: vec![cell(Some(red)), cell(None)] };
        let columns = ["a".to_owned(), "b".to_owned()];
        let sheet = draw(layout, &columns, &[Block { heading: "é?".into(), rows: vec![row] }]);
        let (width, height) = layout.size();
        assert_eq!((u64::from(sheet.width()), u64::from(sheet.height())), (width, height));
        let reds = sheet.enumerate_pixels().filter(|(_, _, pixel)| **pixel == Rgb([255, 0, 0]));
        let reds: Vec<_> = reds.map(|(x, y, _)| (x, y)).collect();
        assert_eq!(reds.len(), 64 * 32);
        let (left, top) = (layout.left(), MARGIN + 2 * (layout.line() + 4));
        assert_eq!((reds[0], reds[reds.len() - 1]), ((left, top), (left + 63, top + 31)));
        let inks = |xs: std::ops::Range<u32>, ys: std::ops::Range<u32>| {
            let all = ys.flat_map(|y| xs.clone().map(move |x| (x, y)));
            all.filter(|&(x, y)| *sheet.get_pixel(x, y) == INK).count()
        };
        assert!(inks(MARGIN..left, MARGIN..MARGIN + 8) > 8, "the heading");
        assert!(inks(MARGIN..MARGIN + 8, top..top + 8) > 4, "the row's label");
        assert!(inks(left..left + 8, top + 64..top + 64 + 12) > 8, "the first caption");
        assert_eq!(inks(left + 64..left + 64 + MARGIN, top..top + 90), 0, "the gap");
    }

    #[test]
    fn long_labels_are_broken_and_cut_at_the_edge() {
        assert_eq!(lines("steps=10 cache=2"), ["steps=10 cache=2"]);
        assert_eq!(lines("steps=10 sampler=dpmpp_2m_sde"), ["steps=10", "sampler=dpmpp_2m_sde"]);
        assert_eq!(lines(&"x".repeat(50)), ["x".repeat(22), "x".repeat(22), "x".repeat(6)]);
        let mut sheet = RgbImage::from_pixel(20, 8, PAPER);
        write(&mut sheet, "MMMM", (0, 0), 100, 1);
        assert!(sheet.enumerate_pixels().all(|(x, _, pixel)| x < 16 || *pixel == PAPER));
    }
}
