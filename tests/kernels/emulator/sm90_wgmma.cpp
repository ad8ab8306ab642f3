// wgmma.mma_async on a CPU: one warp's 16 rows at a time, by the PTX manual's layouts.
#include "sm90_wgmma.h"

#include "values.h"

namespace emulator {

using sparse24::size_of;
using sparse24::Type;

namespace {

constexpr int kStep = 32;  // bytes of stored K in a product

// The numbers of a type's bit patterns.
template <Type kType, class Sum>
const std::vector<Sum>& numbers() {
  static const std::vector<Sum> table = [] {
    std::vector<Sum> values(size_t{1} << 8 * size_of(kType));
    for (uint32_t bits = 0; bits < values.size(); ++bits) {
      values[bits] = static_cast<Sum>(sparse24::value_at<kType>(&bits, 0));
    }
    return values;
  }();
  return table;
}

// A K-major operand as its descriptor has it: rows in groups of eight, swizzled by address.
struct Operand {
  uint32_t start, eight_rows, row_bytes;

  explicit Operand(uint64_t descriptor)
      : start((descriptor & 0x3fff) << 4), eight_rows((descriptor >> 32 & 0x3fff) << 4) {
    const int swizzle = static_cast<int>(descriptor >> 62);
    if (swizzle == 0) fail("a wgmma descriptor without a swizzle is not emulated");
    if ((descriptor >> 49 & 7) != 0) fail("a wgmma descriptor's base offset is not emulated");
    row_bytes = 256 >> swizzle;  // 1: 128 bytes, 2: 64, 3: 32
  }
  // 16 bytes from `byte` (a multiple of 16) of a row on.
  const uint8_t* at(int row, int byte) const {
    uint32_t address = start + row / 8 * eight_rows + row % 8 * row_bytes + byte;
    address ^= address >> 3 & (row_bytes - 16);
    require_shared(address, 16, 16, "wgmma reads outside shared memory");
    return shared + address;
  }
  template <Type kType, class Sum>
  void read(int row, int bytes, Sum* to, int pitch) const {
    const std::vector<Sum>& table = numbers<kType, Sum>();
    constexpr int kSize = size_of(kType);
    for (int byte = 0; byte < bytes; byte += 16) {
      const uint8_t* chunk = at(row, byte);
      for (int i = 0; i < 16; i += kSize, to += pitch) {
        *to = table[kSize == 2 ? chunk[i] | chunk[i + 1] << 8 : chunk[i]];
      }
    }
  }
};

// Which row of B (one step of dense K) the stored element i of a row meets.
template <Type kType>
int met_by(const Product& product, int row, int i, bool is_zero) {
  if (!product.is_sparse) return i;
  const uint32_t nibble = sparse24::nibble_of(
      [&](int lane) { return product.metadata[4 * (row % 8) + lane]; }, size_of(kType), product.selector,
      row / 8, i / 2);
  const uint32_t first = nibble & 3, second = nibble >> 2;
  if (!is_zero && first >= second) fail("wgmma.sp of unordered metadata");
  return 4 * (i / 2) + (i % 2 == 0 ? first : second);
}

template <Type kType, class Sum>
void multiply(const Product& product, int warp) {
  const int tokens = product.tokens;
  constexpr int kStored = kStep / size_of(kType);
  const int dense_bytes = product.is_sparse ? 2 * kStep : kStep;
  static std::vector<Sum> b;  // [dense k][tokens]
  b.resize(dense_bytes / size_of(kType) * tokens);
  const Operand x(product.b), weight(product.a);
  for (int n = 0; n < tokens; ++n) x.read<kType>(n, dense_bytes, &b[n], tokens);
  for (int row = 0; row < 16; ++row) {
    Sum a[kStored], sums[256];
    weight.read<kType>(16 * warp + row, kStep, a, 1);
    // lane and register of a column's sum
    const auto sum_at = [&](int n) -> Sum& {
      return static_cast<Sum*>(product.sums[4 * (row % 8) + n % 8 / 2])[4 * (n / 8) + row / 8 * 2 + n % 2];
    };
    for (int n = 0; n < tokens; ++n) sums[n] = product.accumulate ? sum_at(n) : 0;
    for (int i = 0; i < kStored; ++i) {
      const Sum value = a[i];
      const Sum* met = &b[met_by<kType>(product, row, i, value == 0) * tokens];
      for (int n = 0; n < tokens; ++n) sums[n] += value * met[n];
    }
    for (int n = 0; n < tokens; ++n) sum_at(n) = sums[n];
  }
}

void happen(const Product& product, int warp) {
  switch (product.type) {
    case Type::f16: return multiply<Type::f16, float>(product, warp);
    case Type::bf16: return multiply<Type::bf16, float>(product, warp);
    case Type::e4m3: return multiply<Type::e4m3, float>(product, warp);
    case Type::s8: return multiply<Type::s8, int>(product, warp);
    default: fail("wgmma has no such type");
  }
}

void finish(std::vector<Product>& group) {
  for (const Product& product : group) happen(product, current / 32 % 4);
  group.clear();
}

Products& mine() { return hopper_block().products[current / 32]; }

// The four warps of a warpgroup must issue the same wgmmas.
void compare(const Product& product) {
  HopperBlock& block = hopper_block();
  std::vector<uint64_t>& issued = block.issued[current / 128];
  const uint64_t operands = product.a * 31 + product.b + product.accumulate + 2 * product.selector;
  uint32_t& count = block.compared[current / 32];
  if (count == issued.size()) issued.push_back(operands);
  if (issued[count++] != operands) fail("the warps of a warpgroup issue different wgmmas");
}

}  // namespace

void issue(const Product& product, void* sums, uint32_t metadata) {
  Products& products = mine();
  const int lane = current % 32;
  if (!products.is_fenced) fail("a wgmma without a fence before, after registers were free to change");
  if (products.groups.empty()) products.groups.emplace_back();
  std::vector<Product>& open = products.groups.back();
  const size_t at = products.issued[lane]++;
  if (at == open.size()) {
    open.push_back(product);
    compare(product);
  }
  Product& shared_by_lanes = open[at];
  if (shared_by_lanes.a != product.a || shared_by_lanes.b != product.b) fail("a warp diverged at a wgmma");
  shared_by_lanes.sums[lane] = sums;
  shared_by_lanes.metadata[lane] = metadata;
}

void fence_products() { mine().is_fenced = true; }

void commit_products() {
  int nothing;
  collective("wgmma.commit_group", nothing, [](int**) {
    Products& products = mine();
    if (products.groups.empty()) products.groups.emplace_back();
    for (int& count : products.issued) {
      if (count != static_cast<int>(products.groups.back().size())) fail("a warp diverged at a wgmma");
      count = 0;
    }
    if (!settings.copies_are_late) finish(products.groups.back());  // what is asynchronous is early
    products.groups.emplace_back();
  });
}

void wait_products(int left) {
  collective("wgmma.wait_group", left, [](int** lefts) {
    Products& products = mine();
    while (static_cast<int>(products.groups.size()) > *lefts[0] + 1) {  // the last is still open
      finish(products.groups.front());
      products.groups.erase(products.groups.begin());
    }
    if (*lefts[0] == 0) products.is_fenced = false;
  });
}

}  // namespace emulator
