#include "data/corpus/extract.h"

#include <zlib.h>

#include "data/corpus/text.h"
#include "tests/data/data_support.h"

namespace emox::test {
namespace {

using Texts = std::vector<std::string>;

/// What the later stages make of it, with | for a break.
std::string html(std::string_view source) {
  std::string text = clean_text(extract_html(source));
  for (char& c : text) c = c == kBreak ? '|' : c;
  return text;
}

TEST(ExtractHtml, KeepsTextAndMarksHeadings) {
  EXPECT_EQ(html("<html><head><title>T</title></head><body><h1>One</h1><p>a <b>bold</b>\n  word</p><p>next</p></body>"),
            "One\n\na bold word\n\nnext");
  EXPECT_EQ(html("<p>a</p><h2>B</h2>c<h3>D</h3>"), "a\n\n|B\n\nc\n\n|D");
  EXPECT_EQ(html("x<br>y<br/>z"), "x\ny\nz");
  EXPECT_EQ(html("a < b and 1<2"), "a < b and 1<2");
}

TEST(ExtractHtml, LeavesOutPageFurniture) {
  EXPECT_EQ(html("<p>a</p><script>if (x < 1) y('</p>');</script><style>p {}</style><!-- <p>no</p> --><p>b</p>"),
            "a\n\nb");
  EXPECT_EQ(html("<div class=nosearch><div>menu</div>more</div>text"), "text");
  EXPECT_EQ(html("<div class='x nosearch'>menu</div><div class=\"nosearching\">text</div>"), "text");
  EXPECT_EQ(html("<nav><ul><li>home</ul></nav>text<footer>end</footer>"), "text");
  EXPECT_EQ(html("<span class=\"MAC\"><span>Settings</span></span><span>Options</span>"), "Options");
}

TEST(ExtractHtml, DecodesEntities) {
  EXPECT_EQ(html("&lt;b&gt; &amp;amp; &auml;&#228;&#xE4; &nbsp;x &unknown; & y"),
            "<b> &amp; \xC3\xA4\xC3\xA4\xC3\xA4 x &unknown; & y");
  EXPECT_EQ(decode_entity("#x1F600"), "\xF0\x9F\x98\x80");
  EXPECT_EQ(decode_entity("#x110000"), "");
  EXPECT_EQ(decode_entity("#"), "");
}

TEST(ExtractHtml, LaysOutListsTablesAndPreformattedText) {
  EXPECT_EQ(html("<ul><li>one</li><li><p>two</p></li></ul>"), "- one\n- two");
  EXPECT_EQ(html("<table><tr><td><p>a</p></td><td>b</td></tr><tr><td>c</td></tr></table>after"), "a b\nc\n\nafter");
  EXPECT_EQ(html("<p>x</p><pre>  if a:\n    b</pre><p>y  z</p>"), "x\n\n  if a:\n    b\n\ny z");
}

TEST(ExtractHtml, SurvivesBrokenMarkup) {
  EXPECT_EQ(html("text<"), "text<");
  EXPECT_EQ(html("text<a href=\"x"), "text");
  EXPECT_EQ(html("text<script>never closed"), "text");
  EXPECT_EQ(html("text<!-- never closed"), "text");
}

TEST(ExtractPod, RemovesCodesAndCommands) {
  const std::string pod =
      "=encoding utf8\n\n=head1 NAME\n\nUse C<print> and B<I<nested>> L<the docs|perlop/\"X\">, L<perlfunc/split>, "
      "E<lt>E<gt>.\n\n"
      "=over 4\n\n=item * first\n\n=item *\n\nsecond X<index>C<< $a->b > c >>\n\n=back\n\n"
      "  my $x = C<kept>;\n\n=begin html\n\nno\n\n=end html\n\n=for comment no\n\n=cut\n\nno\n\n=pod\n\nyes\n";
  EXPECT_EQ(clean_text(extract_pod("first\n\n" + pod)),
            "first\n\n\fNAME\n\nUse print and nested the docs, \"split\" in perlfunc, <>.\n\n"
            "- first\n\n- second $a->b > c\n\n  my $x = C<kept>;\n\nyes");
}

TEST(ExtractPython, DropsTheBannerAndMarksDefinitions) {
  const std::string code =
      "# Copyright (C) 2001 Somebody\n# All rights reserved.\n\n# what it does\nimport os\n\ndef f():\n    # License "
      "plate\n    pass\n\n"
      "@cached\ndef g(): pass\n";
  EXPECT_EQ(extract_python(code),
            "\n\f# what it does\nimport os\n\n\fdef f():\n    # License plate\n    pass\n\n\f@cached\ndef g(): pass\n");
}

TEST(ExtractMl, DropsBannersAndRulers) {
  const std::string code =
      "(* ===== *)\n(* Theory *)\n(* (c) Copyright, Somebody 1998 *)\n(* ===== *)\n\n(* ----- *)\n(* Sums. *)\n(* "
      "----- *)\n\n"
      "let A = prove\n (`x`,\n  TAC);;\n";
  EXPECT_EQ(clean_text(extract_ml(code)), "(* Sums. *)\n\n\flet A = prove\n (`x`,\n  TAC);;");
  EXPECT_EQ(extract_ml("let x = 1\n(* two\nlines of licence *)\nlet y = 2\n"), "\flet x = 1\nlet y = 2\n");
}

TEST(ExtractFortunes, SplitsAtPercentLines) {
  EXPECT_EQ(extract_fortunes("one\n\t\t-- Me\n%\n\n%\n 100 % sure\n%"), (Texts{"one\n-- Me\n", "100 % sure\n"}));
}

TEST(ExtractDictionary, ReadsEntriesByTheIndex) {
  const std::string text =
      "about this dictionary Tea\n   A {drink}\n   of leaves. [1913 Webster]\nCup\n\n   [F. coupe] A {vessel}.\n";
  // Base 64: W = 22, u = 46, BE = 68, f = 31.
  const std::string index = "00-database-info\tA\tW\ncup\tBE\tf\nmug\tBE\tf\ntea\tW\tu\n";
  EXPECT_EQ(extract_dictionary(index, text), (Texts{"Tea A drink of leaves.", "Cup\n\n[F. coupe] A vessel."}));
  EXPECT_TRUE(throws_with<IoError>([&] { extract_dictionary("x\tBE\tBA\n", text); }, {"'x'", "68 + 64", "beyond"}));
  EXPECT_TRUE(throws_with<IoError>([&] { extract_dictionary("x\t-\tA\n", text); }, {"'-'"}));
}

TEST(ExtractSword, UnpacksBlocksIntoChapters) {
  const std::string osis =
      "<title>The Book</title> <chapter n=\"1\" osisID=\"B.1\" sID=\"B.1\"/>In the <w "
      "lemma=\"x\">beginning</w>.<note>left "
      "<b>out</b></note> <div sID=\"g\" type=\"x-p\"/>\xC2\xB6 And <transChange>then</transChange>.<chapter "
      "eID=\"B.1\"/>"
      "<chapter n=\"2\" osisID=\"B.2\" sID=\"B.2\"/>Second.";
  std::string packed(1000, '\0');
  uLongf size = packed.size();
  ASSERT_EQ(compress(reinterpret_cast<Bytef*>(packed.data()), &size, reinterpret_cast<const Bytef*>(osis.data()),
                     osis.size()),
            Z_OK);
  packed.resize(size);
  const std::string file = "junk" + packed;
  const auto block = [&](std::uint32_t length) {
    return raw<std::uint32_t>({4, static_cast<std::uint32_t>(packed.size()), length});
  };
  const auto whole = static_cast<std::uint32_t>(osis.size());
  EXPECT_EQ(extract_sword(block(whole), file), (Texts{"The Book", "In the beginning.\n\nAnd then.", "Second."}));
  EXPECT_TRUE(throws_with<IoError>([&] { extract_sword(block(whole + 1), file); }, {"does not unpack"}));
  EXPECT_TRUE(throws_with<IoError>([&] { extract_sword(block(whole), packed); }, {"beyond"}));
  EXPECT_TRUE(throws_with<IoError>([&] { extract_sword("odd", file); }, {"multiple of 12"}));
}

TEST(ReadTextFile, UnpacksGzip) {
  const TemporaryDirectory directory;
  const auto path = directory.path() / "x.gz";
  gzFile file = gzopen(path.c_str(), "wb");
  ASSERT_EQ(gzwrite(file, "packed text", 11), 11);
  gzclose(file);
  EXPECT_EQ(read_source_text(path), "packed text");
  write_bytes(path, "plain text");
  EXPECT_EQ(read_source_text(path), "plain text");
  EXPECT_TRUE(throws_with<IoError>([&] { read_source_text(directory.path() / "none"); }, {"cannot open", "none"}));
}

}  // namespace
}  // namespace emox::test
