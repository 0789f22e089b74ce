//! Lines over two linear axes, as SVG.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
/// Left, right, top, bottom of what the axes enclose.
const FRAME: (f64, f64, f64, f64) = (70.0, 680.0, 48.0, 310.0);

/// One color a series, told apart with any color vision (Okabe and Ito).
const COLORS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

/// Most points that are marked one by one.
const MARKED: usize = 20;

/// A plot; the axes begin at zero.
pub(crate) struct Plot {
    pub(crate) title: &'static str,
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    pub(crate) series: Vec<Series>,
}

pub(crate) struct Series {
    pub(crate) name: &'static str,
    /// In rising order of x.
    pub(crate) points: Vec<(f64, f64)>,
}

impl Plot {
    pub(crate) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let (x, y) = (Axis::to(points().map(|point| point.0)), Axis::to(points().map(|point| point.1)));
        let (left, right, top, bottom) = FRAME;
        let at_x = |value: f64| left + (right - left) * value / x.end;
        let at_y = |value: f64| bottom - (bottom - top) * value / y.end;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{left}\" y=\"22\" font-size=\"15\">{}</text>\n\
             <text x=\"{right}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n",
            self.title,
            HEIGHT - 12.0,
            self.x,
            left - 8.0,
            top - 14.0,
            self.y
        );
        for value in x.ticks() {
            let at = at_x(value);
            let _ = writeln!(
                svg,
                "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                number(value)
            );
        }
        for value in y.ticks() {
            let at = at_y(value);
            let _ = writeln!(
                svg,
                "<line x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 8.0,
                at + 4.0,
                number(value)
            );
        }
        for ((Series { name, points }, color), row) in self.series.iter().zip(COLORS).zip(0_u8..) {
            let line: Vec<String> =
                points.iter().map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y))).collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{color}\" text-anchor=\"end\">{name}</text>",
                line.join(" "),
                right - 8.0,
                bottom - 12.0 - 16.0 * f64::from(row)
            );
            if points.len() <= MARKED {
                for (x, y) in points {
                    let (x, y) = (at_x(*x), at_y(*y));
                    let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>");
                }
            }
        }
        svg + "</svg>\n"
    }
}

struct Axis {
    step: f64,
    end: f64,
}

impl Axis {
    /// Ends at a round number that is not below any of `values`.
    fn to(values: impl Iterator<Item = f64>) -> Self {
        let most = values.filter(|value| value.is_finite()).fold(1e-9, f64::max);
        let magnitude = 10_f64.powf((most / 5.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * magnitude).into_iter().find(|step| most / step <= 6.0);
        let step = step.unwrap_or(most);
        Self { step, end: (most / step).ceil() * step }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = (self.end / self.step).round() as u32;
        (0..=count).map(|n| f64::from(n) * self.step)
    }
}

fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
