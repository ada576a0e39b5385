#include "reporting/plot.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "text/utf8.h"

namespace graft {
namespace {

constexpr double kHeight = 260, kLeft = 44, kRight = 12, kTop = 10, kBottom = 40;

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f", value);
  return text;
}

std::string line(double x1, double y1, double x2, double y2) {
  return "<line class=\"grid\" x1=\"" + number(x1) + "\" y1=\"" + number(y1) + "\" x2=\"" +
         number(x2) + "\" y2=\"" + number(y2) + "\"/>\n";
}

std::string label(double x, double y, const char* anchor, const std::string& text) {
  return "<text class=\"axis\" x=\"" + number(x) + "\" y=\"" + number(y) + "\" text-anchor=\"" +
         anchor + "\">" + text + "</text>\n";
}

/// 1, 2, 5, 10 ...: so that about `most` steps cover the range.
int step_for(int range, int most) {
  for (int decade = 1;; decade *= 10)
    for (const int factor : {1, 2, 5})
      if (range <= decade * factor * most) return decade * factor;
}

}  // namespace

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : to_valid_utf8(text)) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (c == '\'')
      out += "&#39;";
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      out += "\xEF\xBF\xBD";
    else
      out += c;
  }
  return out;
}

std::string log_plot(const std::vector<PlotSeries>& series, int width, const std::string& x_label) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  int first = std::numeric_limits<int>::max(), last = std::numeric_limits<int>::min();
  for (const auto& one : series)
    for (const auto& point : one.points) {
      first = std::min(first, point.x);
      last = std::max(last, point.x);
      if (!(point.y > 0)) continue;
      low = std::min(low, std::log10(point.y));
      high = std::max(high, std::log10(point.y));
    }
  if (low > high) return "";
  low = std::floor(low);
  high = std::max(std::ceil(high), low + 1);
  const double right = width - kRight, bottom = kHeight - kBottom;
  const auto x_at = [&](int x) {
    return first == last ? (kLeft + right) / 2
                         : kLeft + 6 + (right - kLeft - 12) * (x - first) / (last - first);
  };
  const auto y_at = [&](double y) {
    return bottom - (bottom - kTop) * (std::log10(y) - low) / (high - low);
  };
  const std::string box = std::to_string(width) + " " + number(kHeight);
  std::string out = "<svg viewBox=\"0 0 " + box + "\" role=\"img\">\n";
  const int decades = static_cast<int>(high - low), every = step_for(decades, 6);
  for (int i = 0; i <= decades; i += every) {
    const double y = bottom - (bottom - kTop) * i / (high - low);
    out += line(kLeft, y, right, y);
    out += label(kLeft - 6, y + 4, "end", "1e" + std::to_string(static_cast<int>(low) + i));
  }
  const int step = step_for(last - first, width < 500 ? 6 : 12);
  for (int x = (first + step - 1) / step * step; x <= last; x += step)
    out += label(x_at(x), bottom + 16, "middle", std::to_string(x));
  out += label((kLeft + right) / 2, bottom + 34, "middle", escaped(x_label));
  for (std::size_t i = 0; i < series.size(); ++i) {
    std::string path, dots;
    for (const auto& point : series[i].points) {
      if (!(point.y > 0)) continue;
      const std::string x = number(x_at(point.x)), y = number(y_at(point.y));
      path.append(path.empty() ? "" : " ").append(x).append(",").append(y);
      dots += "<circle cx=\"" + x + "\" cy=\"" + y + "\" r=\"3\"><title>" + escaped(point.title) +
              "</title></circle>\n";
    }
    out += "<g class=\"s" + std::to_string(std::min<std::size_t>(i, 8)) +
           "\">\n<polyline points=\"" + path + "\"/>\n" + dots + "</g>\n";
  }
  return out + "</svg>\n";
}

}  // namespace graft
