//! Tables that read well on a terminal and are Markdown, too.

/// The rows under their header, columns as wide as they need; the first `num_names` columns to the
/// left, the others, which are numbers, to the right.
pub fn table(header: &[&str], num_names: usize, rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].chars().count(), 3]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column < num_names {
                format!(" {cell:<width$} ")
            } else {
                format!(" {cell:>width$} ")
            }
        });
        format!("|{}|\n", padded.collect::<Vec<_>>().join("|"))
    };
    let header: Vec<String> = header.iter().map(|&cell| cell.to_owned()).collect();
    let rules = widths.iter().enumerate().map(|(column, &width)| {
        if column < num_names { "-".repeat(width + 2) } else { "-".repeat(width + 1) + ":" }
    });
    let rules = format!("|{}|\n", rules.collect::<Vec<_>>().join("|"));
    let rows: String = rows.iter().map(|row| line(row)).collect();
    line(&header) + &rules + &rows
}

/// The same without the columns in which no row has anything.
pub fn table_without_empty_columns(
    header: &[&str],
    num_names: usize,
    rows: &[Vec<String>],
) -> String {
    let is_told = |&column: &usize| rows.iter().any(|row| !row[column].is_empty());
    let columns: Vec<usize> = (0..header.len()).filter(is_told).collect();
    let header: Vec<&str> = columns.iter().map(|&column| header[column]).collect();
    let of_row = |row: &Vec<String>| columns.iter().map(|&column| row[column].clone()).collect();
    let num_names = columns.iter().filter(|&&column| column < num_names).count();
    table(&header, num_names, &rows.iter().map(of_row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a", "batch 1", "12.5"], ["longer", "b", "3"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        let expected = "\
| target | shape   |   µs |
|--------|---------|-----:|
| a      | batch 1 | 12.5 |
| longer | b       |    3 |
";
        assert_eq!(table(&["target", "shape", "µs"], 2, &rows), expected);
        let wider = rows.clone().map(|row| [&row[..2], &["".to_owned()], &row[2..]].concat());
        let header = ["target", "shape", "published", "µs"];
        assert_eq!(table_without_empty_columns(&header, 2, &wider), expected);
    }
}
