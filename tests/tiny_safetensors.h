#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace graft::test {

/// A safetensors file of this header and so many bytes of data, with nothing checked.
inline std::string safetensors(std::string_view header, std::size_t data_bytes = 0) {
  std::string out;
  for (std::size_t i = 0; i < 8; ++i)
    out += static_cast<char>(static_cast<std::uint8_t>(std::uint64_t{header.size()} >> (8 * i)));
  out += header;
  for (std::size_t i = 0; i < data_bytes; ++i) out += static_cast<char>(i % 251);
  return out;
}

/// `"name":{"dtype":"F32","shape":[...],"data_offsets":[...]}`
inline std::string entry(const std::string& name, const std::string& shape,
                         const std::string& offsets, const std::string& dtype = "F32") {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" +
         offsets + "}";
}

}  // namespace graft::test
