/* wr-bench: a reader of JSON by recursive descent: one function for each kind of value. */
#include "json.h"
#include "text.h"

#include <algorithm>
#include <cstdlib>

namespace bench
{

const Json *Json::get(const char *name, Kind wanted) const
{
    for (const auto &member : members)
        if (member.first == name && member.second.kind == wanted)
            return &member.second;
    return nullptr;
}

namespace
{

class Parser
{
  public:
    explicit Parser(const std::string &whole) : text(whole) {}

    bool whole(Json *value, std::string *why)
    {
        bool good = parse(value, 0) && (skip_space(), at == text.size() || fail("something behind the end"));
        if (!good)
            *why = format("line %td: %s",
                          std::count(text.begin(), text.begin() + long(std::min(at, text.size())), '\n') + 1, problem);
        return good;
    }

  private:
    enum { MAX_DEPTH = 64 };

    bool fail(const char *what)
    {
        if (problem == nullptr)
            problem = at >= text.size() ? "it ends too early" : what;
        return false;
    }

    void skip_space()
    {
        while (at < text.size() && strchr(" \t\r\n", text[at]) != nullptr && text[at] != '\0')
            at++;
    }

    char peek() const
    {
        return at < text.size() ? text[at] : '\0';
    }

    bool take(char c)
    {
        if (peek() != c || at >= text.size())
            return false;
        at++;
        return true;
    }

    bool word(const char *name)
    {
        if (text.compare(at, strlen(name), name) != 0)
            return fail("no value");
        at += strlen(name);
        return true;
    }

    bool parse(Json *value, int depth)
    {
        skip_space();
        if (depth > MAX_DEPTH)
            return fail("too deep");
        switch (peek()) {
        case '{':
            return object(value, depth);
        case '[':
            return array(value, depth);
        case '"':
            value->kind = Json::Kind::string;
            return string(&value->string);
        case 't':
        case 'f':
            value->kind = Json::Kind::boolean;
            value->boolean = peek() == 't';
            return word(value->boolean ? "true" : "false");
        case 'n':
            return word("null");
        default:
            value->kind = Json::Kind::number;
            return number(&value->number);
        }
    }

    bool object(Json *value, int depth)
    {
        value->kind = Json::Kind::object;
        at++;
        skip_space();
        if (take('}'))
            return true;
        do {
            skip_space();
            value->members.emplace_back();
            if (peek() != '"' || !string(&value->members.back().first))
                return fail("no name of a member");
            skip_space();
            if (!take(':'))
                return fail("no ':' behind a name");
            if (!parse(&value->members.back().second, depth + 1))
                return false;
            skip_space();
        } while (take(','));
        return take('}') || fail("neither ',' nor '}'");
    }

    bool array(Json *value, int depth)
    {
        value->kind = Json::Kind::array;
        at++;
        skip_space();
        if (take(']'))
            return true;
        do {
            value->items.emplace_back();
            if (!parse(&value->items.back(), depth + 1))
                return false;
            skip_space();
        } while (take(','));
        return take(']') || fail("neither ',' nor ']'");
    }

    static bool is_digit(char c)
    {
        return c >= '0' && c <= '9';
    }

    bool digits()
    {
        size_t begin = at;
        while (is_digit(peek()))
            at++;
        return at > begin || fail("no value");
    }

    bool number(double *value)
    {
        size_t begin = at;
        take('-');
        if (!take('0') && !digits())
            return false;
        if (take('.') && !digits())
            return false;
        if (take('e') || take('E')) {
            if (!take('+'))
                take('-');
            if (!digits())
                return false;
        }
        *value = strtod(text.substr(begin, at - begin).c_str(), nullptr);
        return true;
    }

    bool string(std::string *value)
    {
        for (at++; at < text.size() && text[at] != '"'; at++) {
            if ((unsigned char)text[at] < ' ')
                return fail("a control character in a string");
            if (text[at] != '\\')
                *value += text[at];
            else if (at++; !escaped(value))
                return false;
        }
        return take('"') || fail("a string without end");
    }

    /* What stands behind a backslash. Leaves `at` on its last character. */
    bool escaped(std::string *value)
    {
        static const char names[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
        const char *name = peek() == '\0' ? nullptr : strchr(names, peek());
        if (name != nullptr) {
            *value += meant[name - names];
            return true;
        }
        /* What is written has no others than control characters: no pairs for what is beyond 16 bits. */
        unsigned code = 0;
        if (peek() != 'u')
            return fail("an unknown escape in a string");
        for (int i = 0; i < 4; i++) {
            at++;
            const char *digit = peek() == '\0' ? nullptr : strchr("0123456789abcdef", peek() | 0x20);
            if (digit == nullptr || !(is_digit(peek()) || (peek() | 0x20) >= 'a'))
                return fail("no four digits behind \\u");
            code = code * 16 + unsigned(digit - "0123456789abcdef");
        }
        if (code < 0x80)
            *value += char(code);
        else if (code < 0x800)
            *value += {char(0xc0 | code >> 6), char(0x80 | (code & 0x3f))};
        else
            *value += {char(0xe0 | code >> 12), char(0x80 | (code >> 6 & 0x3f)), char(0x80 | (code & 0x3f))};
        return true;
    }

    const std::string &text;
    size_t at = 0;
    const char *problem = nullptr;
};

} /* namespace */

bool parse_json(const std::string &text, Json *value, std::string *why)
{
    return Parser(text).whole(value, why);
}

} /* namespace bench */
