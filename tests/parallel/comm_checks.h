// What every transport must compute, in closed form: the same checks run over threads, under mpirun and on one rank.
// A check throws std::runtime_error with the first wrong element.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "parallel/comm/communicator.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/core/tensor.h"

namespace emox::test {

/// Small integers, so that every sum is exact in every type.
template <typename T>
T value_at(int rank, std::int64_t i) {
  return static_cast<T>((rank + 1) * 3 + (i % 11) - 5);
}

template <typename T>
TensorView view_of(std::vector<T>& v) {
  return TensorView(v.data(), dtype_of<T>(), {static_cast<std::int64_t>(v.size())});
}

template <typename T, typename Want>
void expect_values(const std::vector<T>& got, const char* what, const Want& want) {
  for (std::size_t i = 0; i < got.size(); ++i) {
    const T expected = want(static_cast<std::int64_t>(i));
    if (got[i] != expected)
      throw std::runtime_error(fmt::format("{} of {}: element {} of {} is {}, expected {}", what,
                                           name_of(dtype_of<T>()), i, got.size(), got[i], expected));
  }
}

template <typename T>
std::vector<T> contribution(int rank, std::int64_t n) {
  std::vector<T> v(idx(n));
  for (std::int64_t i = 0; i < n; ++i) v[idx(i)] = value_at<T>(rank, i);
  return v;
}

template <typename T>
T sum_at(int ranks, std::int64_t i) {
  const std::int64_t sum = 3 * ranks * (ranks + 1) / 2 + ranks * ((i % 11) - 5);
  return static_cast<T>(sum);
}

template <typename T>
void check_all_reduce_of(Communicator& comm, std::int64_t n) {
  std::vector<T> x = contribution<T>(comm.rank(), n);
  comm.all_reduce(view_of(x));
  expect_values(x, "all_reduce", [&](std::int64_t i) { return sum_at<T>(comm.size(), i); });
  x = contribution<T>(comm.rank(), n);
  comm.all_reduce(view_of(x), ReduceOp::Max);
  expect_values(x, "all_reduce max", [&](std::int64_t i) { return value_at<T>(comm.size() - 1, i); });
}

template <typename T>
void check_all_gather_of(Communicator& comm, std::int64_t n) {
  std::vector<T> mine = contribution<T>(comm.rank(), n);
  std::vector<T> all(idx(n * comm.size()));
  comm.all_gather(view_of(all), view_of(mine));
  expect_values(all, "all_gather", [&](std::int64_t i) { return value_at<T>(static_cast<int>(i / n), i % n); });

  // In place: the input is this rank's block of the output.
  std::fill(all.begin(), all.end(), T{0});
  const TensorView blocks = view_of(all).reshape({comm.size(), n});
  if (n != 0) std::copy(mine.begin(), mine.end(), blocks[comm.rank()].template data<T>());
  if (n != 0) comm.all_gather(blocks, blocks[comm.rank()]);
  if (n != 0)
    expect_values(all, "all_gather in place",
                  [&](std::int64_t i) { return value_at<T>(static_cast<int>(i / n), i % n); });
}

/// Blocks of about `scale` rows: equal ones, unequal ones of which some are empty, and all rows on one rank.
inline std::vector<std::vector<std::int64_t>> block_cuts(int ranks, std::int64_t scale) {
  std::vector<std::vector<std::int64_t>> all(3, {0});
  for (int r = 0; r < ranks; ++r) {
    all[0].push_back(all[0].back() + scale);
    all[1].push_back(all[1].back() + (3 * r + 1) % 4 * scale);
    all[2].push_back(all[2].back() + (r == ranks / 2 ? scale : 0));
  }
  return all;
}

template <typename T>
void check_blocks_of(Communicator& comm, std::int64_t scale, std::int64_t width) {
  for (const std::vector<std::int64_t>& cuts : block_cuts(comm.size(), scale)) {
    const auto self = idx(comm.rank());
    const std::int64_t n = cuts.back(), begin = cuts[self] * width, end = cuts[self + 1] * width;
    std::vector<T> x = contribution<T>(comm.rank(), n * width);
    comm.reduce_scatter(TensorView(x.data(), dtype_of<T>(), {n, width}), ranges_of(cuts));
    const std::vector<T> mine(x.begin() + begin, x.begin() + end);
    expect_values(mine, "reduce_scatter", [&](std::int64_t i) { return sum_at<T>(comm.size(), begin + i); });

    std::fill(x.begin(), x.end(), T{77});
    for (std::int64_t i = begin; i < end; ++i) x[idx(i)] = value_at<T>(comm.rank(), i);
    comm.all_gather_v(TensorView(x.data(), dtype_of<T>(), {n, width}), ranges_of(cuts));
    expect_values(x, "all_gather_v", [&](std::int64_t i) {
      const auto block = std::upper_bound(cuts.begin(), cuts.end(), i / width) - cuts.begin() - 1;
      return value_at<T>(static_cast<int>(block), i);
    });
  }
}

/// Numbers of both signs and of many sizes, so that nearly every sum depends on its order.
template <typename T>
T uneven_value(int rank, std::int64_t i) {
  const std::uint32_t mixed =
      static_cast<std::uint32_t>(rank + 1) * 2654435761U ^ static_cast<std::uint32_t>(i + 1) * 2246822519U;
  const T size = std::ldexp(static_cast<T>(1 + mixed % 1000), static_cast<int>(mixed >> 10 & 63));
  return (mixed >> 20 & 1) != 0 ? size : -size;
}

/// A sum on all ranks has the bits of ((part of rank 0 + part of rank 1) + ...), however the transport carries it.
template <typename T>
void check_sum_order_of(Communicator& comm, std::int64_t n) {
  std::vector<T> x;
  for (std::int64_t i = 0; i < n; ++i) x.push_back(uneven_value<T>(comm.rank(), i));
  comm.all_reduce(view_of(x));
  expect_values(x, "sum in rank order", [&](std::int64_t i) {
    T sum = uneven_value<T>(0, i);
    for (int r = 1; r < comm.size(); ++r) sum += uneven_value<T>(r, i);
    return sum;
  });
}

/// Ranges that are dealt out in turns, of unequal lengths, with rows between them that nobody owns; one rank owns none.
inline std::vector<RowRange> dealt_ranges(int ranks, std::int64_t scale) {
  std::vector<RowRange> ranges;
  std::int64_t at = 1;
  for (int i = 0; i < 3 * ranks; ++i) {
    const std::int64_t rows = scale * (1 + i % 3);
    const int owner = (i * 5 + 1) % ranks;
    if (rows > 0 && (ranks == 1 || owner != ranks - 1)) ranges.push_back({at, at + rows, owner});
    at += rows + i % 2;
  }
  return ranges;
}

/// The sum of one element in the order that shares.h states: inside each node, then over the nodes, where all nodes
/// have as many ranks.
template <typename T>
T sum_by_nodes(const std::vector<int>& nodes, std::int64_t i) {
  std::array<T, 64> of_node{};
  std::array<int, 64> count{};
  std::size_t used = 0;
  T flat{};
  for (int r = 0; r < static_cast<int>(nodes.size()); ++r) {
    const auto node = idx(nodes[idx(r)]);
    used = std::max(used, node + 1);
    const T value = uneven_value<T>(r, i);
    of_node[node] = count[node]++ == 0 ? value : of_node[node] + value;
    flat = r == 0 ? value : flat + value;
  }
  const bool even = count[0] > 1 && std::all_of(count.begin(), count.begin() + static_cast<std::ptrdiff_t>(used),
                                                [&](int n) { return n == count[0]; });
  if (!even) return flat;
  for (std::size_t n = 1; n < used; ++n) of_node[0] += of_node[n];
  return of_node[0];
}

/// Sums reach the owners of ranges with exactly these bits, come back to all, and what nobody owns stays as it was.
/// What travelled is what the counting says. Of many elements, the ends of every range and each 97th are looked at.
template <typename T>
void check_ranges_of(Communicator& comm, std::int64_t scale, std::int64_t width, bool default_pieces) {
  const std::vector<RowRange> ranges = dealt_ranges(comm.size(), scale);
  const std::int64_t n = (ranges.empty() ? 0 : ranges.back().end) + 3;
  std::vector<T> x;
  for (std::int64_t i = 0; i < n * width; ++i) x.push_back(uneven_value<T>(comm.rank(), i));
  const TensorView view(x.data(), dtype_of<T>(), {n, width});
  const std::int64_t stride = n * width < 10000 ? 1 : 97;
  const auto expect = [&](const char* what, std::int64_t i, T want) {
    const T got = x[idx(i)];
    if (got != want) throw std::runtime_error(fmt::format("{}: element {} is {}, expected {}", what, i, got, want));
  };
  const auto expect_sums = [&](const char* what, const RowRange& r) {
    const std::int64_t begin = r.begin * width, end = r.end * width;
    for (std::int64_t i = begin; i < end; i += stride) expect(what, i, sum_by_nodes<T>(comm.nodes(), i));
    expect(what, end - 1, sum_by_nodes<T>(comm.nodes(), end - 1));
  };
  const Traffic before = comm.traffic();
  comm.reduce_scatter(view, ranges);
  for (const RowRange& r : ranges)
    if (r.owner == comm.rank()) expect_sums("reduce_scatter", r);
  comm.all_gather_v(view, ranges);
  std::int64_t at = 0;  // up to here
  for (const RowRange& r : ranges) {
    for (std::int64_t i = at * width; i < r.begin * width; ++i)
      expect("what nobody owns", i, uneven_value<T>(comm.rank(), i));
    expect_sums("all_gather_v", r);
    at = r.end;
  }
  for (std::int64_t i = at * width; i < n * width; ++i) expect("the rest", i, uneven_value<T>(comm.rank(), i));
  if (!default_pieces) return;
  Traffic counted = before;
  const std::size_t row = idx(width) * sizeof(T);
  counted += traffic_of_sum(ranges, comm.nodes(), comm.rank(), row, sizeof(T));
  counted += traffic_of_gather(ranges, comm.nodes(), comm.rank(), row);
  if (comm.size() > 1 && !(comm.traffic() == counted))
    throw std::runtime_error(
        fmt::format("{} messages and {} bytes between nodes, {} and {} inside them; counted {}, {}, {} and {}",
                    comm.traffic().messages_inter_node, comm.traffic().bytes_inter_node,
                    comm.traffic().messages_intra_node, comm.traffic().bytes_intra_node, counted.messages_inter_node,
                    counted.bytes_inter_node, counted.messages_intra_node, counted.bytes_intra_node));
}

inline void check_ranges(Communicator& comm, bool default_pieces = true) {
  check_ranges_of<float>(comm, 1, 1, default_pieces);
  check_ranges_of<double>(comm, 5, 3, default_pieces);
  check_ranges_of<float>(comm, 9001, 7, default_pieces);  // up to three pieces a range
  check_ranges_of<float>(comm, 0, 2, default_pieces);     // nobody owns anything
}

inline void check_sum_orders(Communicator& comm) {
  for (const std::int64_t n : {1, 24, 1000}) {
    check_sum_order_of<float>(comm, n);
    check_sum_order_of<double>(comm, n);
  }
  check_sum_order_of<double>(comm, (std::int64_t{4} << 20) / 8);  // as much as one piece: no longer gathered by all
}

template <typename T>
void check_broadcast_of(Communicator& comm, std::int64_t n, int first_root = 0) {
  for (int root = first_root; root < comm.size(); ++root) {
    std::vector<T> x = contribution<T>(comm.rank(), n);
    comm.broadcast(view_of(x), root);
    expect_values(x, "broadcast", [&](std::int64_t i) { return value_at<T>(root, i); });
  }
}

/// Rank a sends (a + 2 b) % 4 * scale rows of `width` to rank b: some pairs exchange nothing. Between start and finish
/// the counts are overwritten and `between` runs.
template <typename T>
void check_all_to_all_of(Communicator& comm, std::int64_t scale, std::int64_t width,
                         const std::function<void()>& between = {}) {
  const auto rows = [&](int from, int to) { return (from + 2 * to) % 4 * scale; };
  std::vector<std::int64_t> send, recv;
  std::vector<T> in, want;
  for (int r = 0; r < comm.size(); ++r) {
    send.push_back(rows(comm.rank(), r));
    recv.push_back(rows(r, comm.rank()));
    for (std::int64_t i = 0; i < send.back() * width; ++i) in.push_back(value_at<T>(comm.rank() + 7 * r, i));
    for (std::int64_t i = 0; i < recv.back() * width; ++i) want.push_back(value_at<T>(r + 7 * comm.rank(), i));
  }
  std::vector<T> out(want.size());
  const auto total = [](const std::vector<std::int64_t>& v) {
    return std::accumulate(v.begin(), v.end(), std::int64_t{0});
  };
  const TensorView to(out.data(), dtype_of<T>(), {total(recv), width});
  const TensorView from(in.data(), dtype_of<T>(), {total(send), width});
  if (between) {
    comm.all_to_all_v_start(to, recv, from, send);
    std::fill(send.begin(), send.end(), -1);
    std::fill(recv.begin(), recv.end(), -1);
    between();
    comm.all_to_all_v_finish();
  } else {
    comm.all_to_all_v(to, recv, from, send);
  }
  expect_values(out, "all_to_all_v", [&](std::int64_t i) { return want[idx(i)]; });
}

/// Between start and finish this communicator refuses everything, and stays usable; others work.
inline void check_open_exchange(Communicator& comm) {
  const auto part = comm.split(0, -comm.rank());
  std::vector<float> x(idx(comm.size()));
  const TensorView view = view_of(x);
  const std::vector<std::int64_t> ones(x.size(), 1);
  std::vector<std::int64_t> cuts(x.size() + 1);
  std::iota(cuts.begin(), cuts.end(), 0);
  const auto refused = [](const char* what, const std::function<void()>& call) {
    try {
      call();
    } catch (const CommError& e) {
      if (e.message().find("all_to_all_v") != std::string::npos) return;
    }
    throw std::runtime_error(fmt::format("{} should be refused", what));
  };
  refused("finish without start", [&] { comm.all_to_all_v_finish(); });
  check_all_to_all_of<float>(comm, 9, 5, [&] {
    refused("all_reduce", [&] { comm.all_reduce(view); });
    refused("all_gather", [&] { comm.all_gather(view, view.rows(0, 1)); });
    refused("all_gather_v", [&] { comm.all_gather_v(view, ranges_of(cuts)); });
    refused("reduce_scatter", [&] { comm.reduce_scatter(view, ranges_of(cuts)); });
    refused("broadcast", [&] { comm.broadcast(view, 0); });
    refused("all_to_all_v", [&] { comm.all_to_all_v(view, ones, view, ones); });
    refused("a second start", [&] { comm.all_to_all_v_start(view, ones, view, ones); });
    refused("barrier", [&] { comm.barrier(); });
    refused("split", [&] { comm.split(0, 0); });
    check_all_reduce_of<float>(*part, 31);
    check_all_to_all_of<float>(*part, 4, 3, [&] { refused("barrier", [&] { part->barrier(); }); });
  });
  refused("a second finish", [&] { comm.all_to_all_v_finish(); });
  comm.barrier();
}

template <typename T>
void check_type(Communicator& comm, std::int64_t n) {
  check_all_reduce_of<T>(comm, n);
  check_all_gather_of<T>(comm, n);
  check_broadcast_of<T>(comm, n);
  check_blocks_of<T>(comm, n, 3);
  check_all_to_all_of<T>(comm, n, 3);
}

/// Twice the same sums of values that round: the same bits, and on every rank.
inline void check_repeatable(Communicator& comm, std::int64_t n) {
  std::vector<float> x(idx(n));
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = 1.0F / (1.0F + static_cast<float>(comm.rank()) * 0.7F + static_cast<float>(i % 1013)) *
           (i % 3 == 0 ? 1e4F : 1.0F);
  std::vector<float> first = x, second = x;
  comm.all_reduce(view_of(first));
  comm.all_reduce(view_of(second));
  std::vector<float> root = first;
  comm.broadcast(view_of(root), 0);
  if (std::memcmp(first.data(), second.data(), view_of(first).bytes()) != 0)
    throw std::runtime_error("all_reduce: other bits the second time");
  if (std::memcmp(first.data(), root.data(), view_of(first).bytes()) != 0)
    throw std::runtime_error("all_reduce: other bits than rank 0");
}

/// Even and odd ranks part; inside a part the order is reversed.
inline void check_split(Communicator& comm) {
  const auto part = comm.split(comm.rank() % 2, -comm.rank());
  const int members = (comm.size() - comm.rank() % 2 + 1) / 2;
  const int place = members - 1 - comm.rank() / 2;
  if (part->size() != members || part->rank() != place)
    throw std::runtime_error(
        fmt::format("split: rank {} of {}, expected {} of {}", part->rank(), part->size(), place, members));
  check_type<float>(*part, 17);
  const auto again = part->split(0, 0);
  check_type<std::int64_t>(*again, 5);
  comm.barrier();
}

/// bf16 moves bit by bit, and is never added.
inline void check_bf16(Communicator& comm) {
  const auto row = [](int rank) { return std::vector<Bf16>{Bf16(0.1F + static_cast<float>(rank)), Bf16(-3e38F)}; };
  std::vector<Bf16> want, mine = row(comm.rank()), all(2 * idx(comm.size()));
  for (int r = 0; r < comm.size(); ++r)
    for (const Bf16 x : row(r)) want.push_back(x);
  comm.all_gather(view_of(all), view_of(mine));
  if (all != want) throw std::runtime_error("all_gather of bf16: other bits");
  std::fill(all.begin(), all.end(), Bf16());
  std::vector<Bf16> same = all;  // the same row to everybody
  for (std::size_t i = 0; i < same.size(); ++i) same[i] = mine[i % 2];
  const std::vector<std::int64_t> ones(idx(comm.size()), 1);
  const Shape rows{comm.size(), 2};
  comm.all_to_all_v(view_of(all).reshape(rows), ones, view_of(same).reshape(rows), ones);
  if (all != want) throw std::runtime_error("all_to_all_v of bf16: other bits");
  for (const bool scatter : {false, true}) try {
      if (scatter)
        comm.reduce_scatter(view_of(all), std::vector<RowRange>{{0, 1, 0}});
      else
        comm.all_reduce(view_of(all));
      throw std::runtime_error("a sum of bf16 was taken");
    } catch (const ShapeError&) {
    }
}

/// `rank_order`: sums of floats are those that communicator.h states, bit by bit.
inline void check_everything(Communicator& comm, bool default_pieces = true, bool rank_order = true) {
  for (const std::int64_t n : {std::int64_t{0}, std::int64_t{1}, std::int64_t{2}, std::int64_t{1237}}) {
    check_type<float>(comm, n);
    check_type<double>(comm, n);
    check_type<std::int32_t>(comm, n);
    check_type<std::int64_t>(comm, n);
  }
  check_all_reduce_of<float>(comm, (4 << 20) / 4 + 3);  // one piece and a rest
  check_all_reduce_of<double>(comm, (9 << 20) / 8 + 1);
  check_all_gather_of<float>(comm, (5 << 20) / 4 / comm.size() + 3);
  check_blocks_of<float>(comm, (5 << 20) / 4 / comm.size() / 7 + 3, 7);
  check_broadcast_of<std::uint8_t>(comm, (5 << 20) + 1, comm.size() - 1);
  check_all_to_all_of<float>(comm, 700, 257);
  check_all_to_all_of<std::uint8_t>(comm, 3, 5);
  check_repeatable(comm, 100003);
  if (rank_order) check_ranges(comm, default_pieces);
  if (rank_order) check_sum_orders(comm);
  check_open_exchange(comm);
  check_split(comm);
  check_bf16(comm);
  comm.barrier();
}

}  // namespace emox::test
